"""From per-token metrics to figures with standard errors (:func:`summarize`).

Means are over the n tokens; d = p - p_base (Δp). KLD and ln ratios in nats; Δp, same top, overlaps and the
correlation are plain numbers (a Δp of -0.01 is what llama-perplexity prints as -1.000 %).

| key                 | llama-perplexity prints        | value                                      | errors |
|---------------------|--------------------------------|--------------------------------------------|--------|
| ppl                 | Mean PPL(Q)                    | exp(mean nll)                              | both   |
| ppl_base            | Mean PPL(base)                 | exp(mean nll_base)                         | both   |
| ppl_ratio           | Mean PPL(Q)/PPL(base)          | exp(mean(nll - nll_base))                  | both   |
| ppl_difference      | Mean PPL(Q)-PPL(base)          | ppl - ppl_base                             | both   |
| ln_ppl_ratio        | Mean ln(PPL(Q)/PPL(base))      | mean(nll - nll_base)                       | both   |
| cor_ln_ppl          | Cor(ln(PPL(Q)), ln(PPL(base))) | Pearson correlation of nll, nll_base (≤ 1) | both*  |
| kld_mean            | Mean KLD                       | mean kld                                   | both   |
| kld_max, kld_min    | Maximum, Minimum KLD           | largest, smallest                          | -      |
| kld_p99_9 .. p0_1   | 99.9% .. 0.1% KLD              | quantile, linear between order statistics  | -      |
| kld_median          | Median KLD                     | the same at 50 %                           | -      |
| dp_mean             | Mean Δp                        | mean d                                     | both   |
| dp_rms              | RMS Δp                         | sqrt(mean d²)                              | both   |
| dp_max, dp_min      | Maximum, Minimum Δp            | largest, smallest d                        | -      |
| dp_p99_9 .. p0_1    | 99.9% .. 0.1% Δp               | quantile of d                              | -      |
| dp_median           | Median Δp                      | the same at 50 %                           | -      |
| same_top            | Same top p                     | share of tokens with the same argmax       | both   |
| kld_reverse_mean    | (ours)                         | mean kld_reverse                           | both   |
| js_mean             | (ours)                         | mean js                                    | both   |
| top5_overlap        | (ours)                         | mean top5_overlap                          | both   |
| top10_overlap       | (ours)                         | mean top10_overlap                         | both   |
| nonfinite_tokens    | (ours)                         | tokens with a fault (flag 1 or 2)          | -      |
| nonfinite_base      | (ours)                         | those of them where the base is at fault   | -      |

(*) llama-perplexity prints the correlation without an error.

Every figure with errors is, to first order, a mean over tokens of an influence ψ (the delta method): x
- mean for a mean; that times exp(mean) for PPL and ratio; ppl·(nll - mean) - ppl_base·(nll_base - mean)
for the difference; (d² - mean d²) / (2 rms) for the RMS; z·w - ρ(z² + w²)/2 with standardized z, w for
the correlation (Devlin, Gnanadesikan & Kettenring 1975). Then

* ``se`` = sqrt(Σ ψ² / (n (n-1))): tokens independent. This *is* llama-perplexity's formula in every
  line above (mean_and_uncertainty, covariance, p(1-p)/(n-1) for the top), so published ± values can be
  compared.
* ``se_clustered`` = sqrt(G/(G-1) · Σ_g (Σ_{i in g} ψ_i)²) / n over the G chunks, or documents: tokens of
  a chunk share a context and are correlated (Liang & Zeger 1986; Cameron & Miller 2015, section II).
  With one token a chunk it equals ``se``. Of several texts together, residuals are about each text's
  own mean. See ``clusters``.

Where ours differs from the printed figures: inputs are exact (see ``metrics``) where llama-perplexity's
are float32 and 16-bit; sums are centred, so a small variance is not lost to cancellation; quantile
positions are float64, there float32; it prints 0 as the error of 10 tokens or fewer and nothing at all
below 100 tokens, where ours is None with a reason.

**Undefined is None with a reason.** A figure any of whose tokens has no finite value (see ``nonfinite``
in ``metrics``) is None and its reason counts those tokens: it is never the mean of the rest. Figures
that do not depend on these values stay. ``se`` needs more than 10 tokens, anything clustered at least
10 chunks (or documents; more of several texts).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from bitloss.divergence.clusters import ChunkIds, Clusters
from bitloss.divergence.metrics import (
    LEFT_OUT,
    NONFINITE_BASE,
    NONFINITE_CANDIDATE,
    FloatArray,
    TokenMetrics,
)
from bitloss.records import Figure

if TYPE_CHECKING:
    from collections.abc import Mapping

MIN_TOKENS: Final = 11
"""llama-perplexity's own rule: no standard error from 10 tokens or fewer."""

KLD_QUANTILES: Final = {
    **{"p99_9": 0.999, "p99": 0.99, "p95": 0.95, "p90": 0.90, "median": 0.5},
    **{"p10": 0.10, "p5": 0.05, "p1": 0.01, "p0_1": 0.001},
}
DP_QUANTILES: Final = {
    **{"p99_9": 0.999, "p99": 0.99, "p95": 0.95, "p90": 0.90, "p75": 0.75, "median": 0.5},
    **{"p25": 0.25, "p10": 0.10, "p5": 0.05, "p1": 0.01, "p0_1": 0.001},
}


class _Estimate(NamedTuple):
    """A value and its influence per token [n]; influence None where the delta method has none (0/0)."""

    value: float
    influence: FloatArray | None


def summarize(tokens: TokenMetrics, chunk_ids: ChunkIds | Clusters) -> dict[str, Figure]:
    """All figures of one candidate; keys, formulas and units in the module docstring.

    Args:
        tokens: metrics of n tokens.
        chunk_ids: integer [n], the chunk of each token; or how they are clustered otherwise.

    Raises:
        MismatchError: chunk_ids has another length than tokens.
    """
    clusters = Clusters.fitting(chunk_ids, len(tokens))
    fault = _fault(tokens)
    nll, base, dp = tokens.nll, tokens.nll_base, tokens.dp
    with np.errstate(invalid="ignore", over="ignore"):  # inf - inf, exp(inf): such figures become None
        ln_ratio = nll - base
        columns: dict[str, tuple[FloatArray, _Estimator]] = {
            "ppl": (nll, _exp_mean),
            "ppl_base": (base, _exp_mean),
            "ppl_ratio": (ln_ratio, _exp_mean),
            "ppl_difference": (np.stack([nll, base]), _difference_of_exp_means),
            "ln_ppl_ratio": (ln_ratio, _mean),
            "cor_ln_ppl": (np.stack([nll, base]), _correlation),
            "kld_mean": (tokens.kld, _mean),
            "dp_mean": (dp, _mean),
            "dp_rms": (dp, _rms),
            "same_top": (same_top_share(tokens), _mean),
            "kld_reverse_mean": (tokens.kld_reverse, _mean),
            "js_mean": (tokens.js, _mean),
            "top5_overlap": (tokens.top5_overlap.astype(np.float64), _mean),
            "top10_overlap": (tokens.top10_overlap.astype(np.float64), _mean),
        }
        figures = {key: _figure(x, estimator, clusters, fault) for key, (x, estimator) in columns.items()}
    figures |= _quantiles("kld", tokens.kld, KLD_QUANTILES, fault)
    figures |= _quantiles("dp", dp, DP_QUANTILES, fault)
    faults = tokens.nonfinite & (NONFINITE_BASE | NONFINITE_CANDIDATE)
    figures["nonfinite_tokens"] = Figure(value=float(np.count_nonzero(faults)))
    figures["nonfinite_base"] = Figure(value=float(np.count_nonzero(faults & NONFINITE_BASE)))
    return figures


def mean_with_errors(values: FloatArray, chunk_ids: ChunkIds | Clusters) -> Figure:
    """Mean of values [n] with both standard errors; the rules of the module docstring.

    Raises:
        MismatchError: chunk_ids has another length than values.
    """
    return _figure(values, _mean, Clusters.fitting(chunk_ids, len(values)), "")


_Estimator = Callable[[FloatArray], _Estimate]


def _mean(x: FloatArray) -> _Estimate:
    mean = float(np.mean(x))
    return _Estimate(mean, x - mean)


def _exp_mean(x: FloatArray) -> _Estimate:
    mean = float(np.mean(x))
    value = float(np.exp(mean))
    return _Estimate(value, value * (x - mean))


def _difference_of_exp_means(xy: FloatArray) -> _Estimate:
    x, y = _exp_mean(xy[0]), _exp_mean(xy[1])
    assert x.influence is not None
    assert y.influence is not None
    return _Estimate(x.value - y.value, x.influence - y.influence)


def _rms(x: FloatArray) -> _Estimate:
    square = float(np.mean(x * x))
    value = math.sqrt(square)
    return _Estimate(value, (x * x - square) / (2.0 * value) if value > 0 else None)


def _correlation(xy: FloatArray) -> _Estimate:
    centred = xy - np.mean(xy, axis=1, keepdims=True)
    spread = np.sqrt(np.mean(centred * centred, axis=1, keepdims=True))
    if not np.all(spread > 0):
        return _Estimate(math.nan, None)
    z, w = centred / spread
    # Rounding may carry a perfect correlation past 1.
    rho = min(1.0, max(-1.0, float(np.mean(z * w))))
    return _Estimate(rho, z * w - rho * (z * z + w * w) / 2.0)


def _figure(x: FloatArray, estimator: _Estimator, clusters: Clusters, fault: str) -> Figure:
    """Value and errors of one figure from its column(s) [..., n]; ``fault`` explains non-finite entries."""
    n = x.shape[-1]
    missing = _missing(x, fault)
    if missing:
        return Figure(value=None, reason=missing)
    value, influence = estimator(x)
    if not math.isfinite(value):
        return Figure(value=None, reason="undefined: no variation" if math.isnan(value) else "overflows")
    if influence is None:
        return Figure(value=value, reason="no standard error: 0/0 at a value of 0")
    se = se_clustered = None
    reasons = []
    if n >= MIN_TOKENS:
        se = math.sqrt(float(np.sum(influence * influence)) / n / (n - 1))
    else:
        reasons.append(f"no standard error: {n:,} tokens, at least {MIN_TOKENS} needed")
    if clusters.missing is None:
        se_clustered = clusters.error(influence)
    else:
        reasons.append(f"no clustered standard error: {clusters.missing}")
    return Figure(value=value, se=se, se_clustered=se_clustered, reason="; ".join(reasons) or None)


def _quantiles(prefix: str, x: FloatArray, fractions: Mapping[str, float], fault: str) -> dict[str, Figure]:
    """Maximum, quantiles and minimum of x [n] under ``prefix_*``."""
    keys = ["max", *fractions, "min"]
    missing = _missing(x, fault)
    if missing:
        return {f"{prefix}_{key}": Figure(value=None, reason=missing) for key in keys}
    values = np.quantile(x, [1.0, *fractions.values(), 0.0], method="linear")
    return {f"{prefix}_{key}": Figure(value=float(value)) for key, value in zip(keys, values, strict=True)}


def _missing(x: FloatArray, fault: str) -> str | None:
    """Why no figure can be made of x [..., n], or None if it can."""
    n = x.shape[-1]
    if n == 0:
        return "no tokens"
    bad = int(np.count_nonzero(~np.all(np.isfinite(x), axis=tuple(range(x.ndim - 1)))))
    return f"{bad:,} of {n:,} tokens have no finite value{fault}" if bad else None


def same_top_share(tokens: TokenMetrics) -> FloatArray:
    """1 where the likeliest tokens agree, 0 where not, NaN where one side has none; [n]."""
    return np.where(np.isnan(tokens.js), np.nan, tokens.same_top.astype(np.float64))


def _fault(tokens: TokenMetrics) -> str:
    """Whose logits are at fault, for the reason of a figure that cannot be given."""
    base = np.count_nonzero(tokens.nonfinite & NONFINITE_BASE)
    cand = np.count_nonzero(tokens.nonfinite & NONFINITE_CANDIDATE)
    left = np.count_nonzero(tokens.nonfinite & LEFT_OUT)
    if left and not base and not cand:
        return " (the file the base was read from leaves out improbable tokens)"
    return f" (logits NaN or infinite: candidate in {cand:,}, base in {base:,} tokens)"
