"""Measure until it is decided: statements that hold whenever one stops.

An ordinary 95 % interval holds for a number of chunks fixed beforehand. Looked at after every chunk until it says
something, it is wrong far more often than 5 %. A *confidence sequence* is a row of intervals C_1, C_2, ... with

    P(the mean is outside C_n for some n) ≤ α,

so one may look as often as one likes, stop for any reason, and report the last interval.

**The sequence.** Let x_1 .. x_n be per-chunk values (chunks are the independent units; tokens of a chunk are not), m
their mean, SS = Σ (x_i - m)², ν = n - 1, and g > 0 a constant. For a hypothesis "the mean is μ" the e-value is

    E_n(μ) = r^(-1/2) · ((1 + u) / (1 + u/r))^(n/2),    r = 1 + n·g,    u = n·(m - μ)² / SS (= t²/ν)

the Bayes factor of the t-test under a normal prior N(0, g) on the mean in standard deviations and the right Haar prior
1/σ on the spread. Under independent normal chunks of any σ it is a martingale of the scale-free data, so by Ville's
inequality P(E_n(μ) ≥ 1/α for some n ≥ 2) ≤ α. Solved for μ:

    C_n = m ± sqrt(SS/n · (K - 1) / (1 - K/r)),    K = (r / α²)^(1/n);    the whole line where K ≥ r.

Sources: Lai (1976), On confidence sequences; Wang & Ramdas (2023), Anytime-valid t-tests and confidence sequences for
Gaussian means with unknown variance (arXiv:2310.03722); the Bayes factor as in Rouder et al. (2009).

**Assumption, plainly.** It is exact for normal chunks. For others it is asymptotic: as n grows C_n becomes

    m ± s · sqrt(r/(n·g) · ln(r/α²)) / sqrt(n),    s² = SS/n,

the asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas (2024), Time-uniform central limit
theory and asymptotic confidence sequences, Annals of Statistics 52(6), which needs a finite variance only. Both
agree to first order; this one does not pretend to know σ from ten chunks (with a burn-in of 10 theirs misses a normal
mean in 7 % at α = 5 %, and in 1.2 % at α = 0.11 %; this one in 4 % and 0.2 %). Nothing is said before `BURN_IN` chunks.
Paired differences of two candidates are near symmetric and the error stays below α (tests). Mean KLD over the chunks
of a novel has a skew of 0.4, and gamma values of skew 0.5 are missed in 4 %. Stronger skew is covered less well while n
is small (skew 1.4: 7 %; lognormal values of σ = 1: 20 %), which matters little for :func:`precise`, where n is large
by the time it stops. A difference that is zero but for rare events can look certain before the first of them.
A value that was the same in every chunk says nothing.

**Order of chunks.** Neighbouring chunks of a text are alike, so its beginning is no sample of it. Chunks are taken in a
seeded random order (:func:`chunk_order`): then what is measured is a sample of the whole text, whatever its order, and
the sequence speaks of the mean over that text (drawn without replacement, which only narrows the true spread; Hoeffding
1963).

**g** makes the sequence narrowest at `TARGET` chunks at its level: g = v/TARGET with v = ln(1 + v) - 2 ln α, that is
v = -W_(-1)(-α²/e) - 1 (Lambert W). At 16 and at 512 chunks it is then less than a third wider than the best possible
there.

**Several statements** share the level: each of K gets α/K (Bonferroni), which holds at all times at once.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bitloss.divergence.comparison import ALPHA, Comparison, Metric, Pair, column, compare, holm, judge
from bitloss.errors import MismatchError
from bitloss.records import Outcome

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Mapping, Sequence

    from bitloss.divergence.clusters import ChunkIds
    from bitloss.divergence.metrics import FloatArray, TokenMetrics

BURN_IN: Final = 10
"""Chunks before anything is said; as `bitloss.divergence.clusters.MIN_CLUSTERS`."""

TARGET: Final = 64
"""Chunks at which the sequence is narrowest."""


class Bounds(NamedTuple):
    """A confidence sequence: bounds after each of n chunks, [..., n]; infinite where nothing can be said."""

    low: FloatArray
    high: FloatArray


class Judgement(NamedTuple):
    """What is settled about a pair by one metric.

    Attributes:
        pair: the candidates.
        metric: what they are compared by.
        outcome: what is settled, of the first candidate.
        at: chunks it took; None while open or undefined, 0 for identical candidates.
        low: lower bound of the mean difference a - b after all chunks, at the level split over the table; None
            where there is none.
        high: upper bound.
    """

    pair: Pair
    metric: Metric
    outcome: Outcome
    at: int | None = None
    low: float | None = None
    high: float | None = None


class Decision(NamedTuple):
    """What is settled after some chunks.

    Attributes:
        done: nothing is open: evaluation may stop.
        judgements: one per pair and metric.
    """

    done: bool
    judgements: tuple[Judgement, ...]


class Precise(NamedTuple):
    """How well one candidate's mean is known.

    Attributes:
        mean: over the chunks; None where a chunk has no finite value.
        low: lower bound of the confidence sequence after all chunks, at the level split over candidates; None where
            there is none.
        high: upper bound.
        relative: half the width over the mean; None likewise.
    """

    mean: float | None
    low: float | None = None
    high: float | None = None
    relative: float | None = None


class Precision(NamedTuple):
    """How well every candidate's mean is known.

    Attributes:
        done: all as well as asked for (a mean without a finite value holds nothing up).
        candidates: by name.
    """

    done: bool
    candidates: dict[str, Precise]


class Rule(NamedTuple):
    """When a table is decided.

    Attributes:
        metrics: what every pair is compared by.
        margins: candidates no further apart than this are equivalent: for mean KLD a share of the mean of the two
            candidates' KLD, for ln PPL nats, for the same top a share. A metric without margin has no equivalence.
        alpha: chance of any wrong statement about the whole table.
        family: statements the level is split over; by default one per pair (not identical) and metric.
    """

    metrics: tuple[Metric, ...] = (Metric.KLD_MEAN,)
    margins: Mapping[Metric, float] = {}
    alpha: float = ALPHA
    family: int | None = None


def chunk_order(n_chunks: int, seed: int) -> npt.NDArray[np.int64]:
    """Random order to take a text's chunks in: a permutation of 0 .. n_chunks-1 that follows from its arguments."""
    return np.random.default_rng((seed, n_chunks)).permutation(n_chunks)


def prior_variance(alpha: float, target: int = TARGET) -> float:
    """Constant g that makes the sequence at level `alpha` narrowest at `target` chunks."""
    from scipy.special import lambertw

    return float(-lambertw(-(alpha**2) / math.e, -1).real - 1.0) / target


def confidence_sequence(
    values: FloatArray, *, alpha: float = ALPHA, g: float | None = None, burn_in: int = BURN_IN
) -> Bounds:
    """Bounds on the mean that hold after every chunk at once; formula and assumption in the module docstring.

    Args:
        values: [..., n] per-chunk values in the order they were taken.
        alpha: chance that the mean is ever outside.
        g: see the module docstring; by default :func:`prior_variance` of `alpha`.
        burn_in: chunks before anything is said, at least 2.
    """
    mean, squares, n = _prefixes(values)
    log_r = np.log1p(n * (prior_variance(alpha) if g is None else g))
    log_k = (log_r - 2.0 * math.log(alpha)) / n
    said = (n >= max(2, burn_in)) & (log_k < log_r) & (squares > 0)
    with np.errstate(all="ignore"):
        half = np.sqrt(squares / n * np.expm1(log_k) / -np.expm1(log_k - log_r))
        said &= np.isfinite(mean) & np.isfinite(half)
        return Bounds(np.where(said, mean - half, -np.inf), np.where(said, mean + half, np.inf))


def anytime_p_values(values: FloatArray, *, g: float, burn_in: int = BURN_IN) -> FloatArray:
    """Two-sided p-values [..., n] of "the mean is 0", valid whenever one stops: the least 1/E_k(0) of k ≤ n.

    At most α exactly when some :func:`confidence_sequence` up to n, at that level and with the same g, excludes 0.
    """
    mean, squares, n = _prefixes(values)
    log_r = np.log1p(n * g)
    with np.errstate(all="ignore"):
        u = n * mean * mean / squares
        log_e = 0.5 * (n * (np.log1p(u) - np.log1p(u * np.exp(-log_r))) - log_r)
    said = (n >= max(2, burn_in)) & (squares > 0) & np.isfinite(log_e)
    p_values: FloatArray = np.exp(-np.maximum.accumulate(np.where(said, log_e, 0.0).clip(min=0.0), axis=-1))
    return p_values


def chunk_means(values: FloatArray, chunk_ids: ChunkIds) -> FloatArray:
    """Mean of every chunk, chunks in the order they first appear.

    Args:
        values: [n] per token.
        chunk_ids: integer [n], the chunk of each token.

    Raises:
        MismatchError: chunk_ids has another length than values.
    """
    if chunk_ids.shape != values.shape:
        raise MismatchError("chunk ids do not fit the tokens", expected=values.shape, found=chunk_ids.shape)
    _, first, index = np.unique(chunk_ids, return_index=True, return_inverse=True)
    with np.errstate(invalid="ignore"):
        means = np.bincount(index, weights=values, minlength=len(first)) / np.bincount(index)
    ordered: FloatArray = means[np.argsort(first)]
    return ordered


def decided(
    values: Mapping[Metric, Mapping[str, FloatArray]],
    pairs: Sequence[Pair],
    rule: Rule,
    *,
    identical: Collection[Pair] = (),
) -> Decision:
    """Ask which pairs are settled.

    A pair is settled by a metric as soon as its sequence excludes 0 (better, worse), or both "a is above b by the
    margin" and "below by the margin" are excluded (equivalent: two one-sided sequences, of d - w and d + w, where
    d = a - b and w is the margin, for mean KLD margin·(a + b)/2 chunk by chunk). What was settled stays settled.

    The chance that any outcome of the table is wrong, ever, is at most `rule.alpha`: of a pair whose difference is 0 no
    outcome but a direction is wrong; of one beyond the margin only one direction and one side of the margin are, each
    with half the pair's level.

    Args:
        values: by metric and candidate, per-chunk values [n] on the same chunks in the same order.
        pairs: what to settle.
        rule: see :class:`Rule`.
        identical: pairs known to be equal (equal tensors); settled at once.

    Raises:
        MismatchError: candidates were measured on different numbers of chunks.
    """
    lengths = {len(x) for by_name in values.values() for x in by_name.values()}
    if len(lengths) > 1:
        raise MismatchError("candidates were measured on different chunks", found=sorted(lengths))
    open_pairs = [pair for pair in pairs if pair not in identical]
    level = rule.alpha / max(1, rule.family or len(open_pairs) * len(rule.metrics))
    judgements = [
        Judgement(pair, metric, Outcome.IDENTICAL, 0)
        if pair in identical
        else _settle(pair, metric, values[metric], level, rule.margins.get(metric))
        for pair in pairs
        for metric in rule.metrics
    ]
    return Decision(all(each.outcome is not Outcome.OPEN for each in judgements), tuple(judgements))


def precise(values: Mapping[str, FloatArray], precision: float, *, alpha: float = ALPHA) -> Precision:
    """Ask whether every candidate's mean is known to within `precision` (0.02: 2 %) of itself.

    The level is split over the candidates. A mean whose chunks are all the same is not known well: it says nothing.

    Args:
        values: by candidate, per-chunk values [n], of a quantity above 0.
        precision: largest half-width of the confidence sequence over the mean.
        alpha: chance that any mean is ever outside its sequence.
    """
    found = {name: _known(x, alpha / len(values)) for name, x in values.items()}
    done = all(
        each.mean is None or (each.relative is not None and each.relative <= precision)
        for each in found.values()
    )
    return Precision(done, found)


def compare_all_anytime(
    tokens: Mapping[str, TokenMetrics],
    pairs: Sequence[Pair],
    chunk_ids: ChunkIds,
    *,
    family: int,
) -> dict[tuple[Pair, Metric], Comparison]:
    """As `compare_all`, valid although the number of chunks was not fixed beforehand.

    ``ci95`` is the confidence sequence after all chunks (95 %, of this comparison alone), ``p_value`` the
    anytime-valid p-value, both with g tuned to 5 % split over `family`, so that whatever :func:`decided` called
    better or worse with the same family is so here; ``p_holm`` and the verdict follow as there (Holm's step-down needs
    nothing but valid p-values at one time).

    Args:
        tokens: metrics of the same n tokens by candidate name, in the order they were measured.
        pairs: names of a and b for each comparison.
        chunk_ids: integer [n], the chunk of each token.
        family: see :func:`table_size`.
    """
    rows = {
        (pair, metric): compare(tokens[pair.a], tokens[pair.b], chunk_ids, metric)
        for pair in pairs
        for metric in Metric
    }
    g = prior_variance(ALPHA / family)
    for (pair, metric), row in rows.items():
        if row.p_value is None:
            continue
        x = chunk_means(column(tokens[pair.a], metric) - column(tokens[pair.b], metric), chunk_ids)
        bounds = confidence_sequence(x, alpha=ALPHA, g=g)
        ends = (float(bounds.low[-1]), float(bounds.high[-1]))
        finite = math.isfinite(ends[0]) and math.isfinite(ends[1])
        rows[pair, metric] = dataclasses.replace(
            row, ci95=ends if finite else None, p_value=float(anytime_p_values(x, g=g)[-1])
        )
    tested = {key: row.p_value for key, row in rows.items() if row.p_value is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    return {key: judge(row, adjusted[key]) if key in adjusted else row for key, row in rows.items()}


def table_size(pairs: Sequence[Pair], identical: Collection[Pair]) -> int:
    """Comparisons in the table of :func:`compare_all_anytime`: the family :func:`decided` has to reckon with."""
    return max(1, sum(pair not in identical for pair in pairs) * len(Metric))


def same_files(pairs: Sequence[Pair], measured_as: Mapping[str, Hashable]) -> frozenset[Pair]:
    """Pairs of twins; ``measured_as`` as for `table_pairs`."""
    return frozenset(pair for pair in pairs if measured_as[pair.a] == measured_as[pair.b])


def _settle(
    pair: Pair, metric: Metric, values: Mapping[str, FloatArray], level: float, margin: float | None
) -> Judgement:
    a, b = values[pair.a], values[pair.b]
    with np.errstate(invalid="ignore"):
        difference = a - b
    if not np.all(np.isfinite(difference)):
        return Judgement(pair, metric, Outcome.UNDEFINED)
    bounds = confidence_sequence(difference, alpha=level)
    above, below = _first(bounds.low > 0), _first(bounds.high < 0)
    higher, lower = (
        (Outcome.BETTER, Outcome.WORSE) if metric is Metric.SAME_TOP else (Outcome.WORSE, Outcome.BETTER)
    )
    reached = [(above, higher), (below, lower)]
    if margin is not None:
        apart = margin * (a + b) / 2.0 if metric is Metric.KLD_MEAN else np.full_like(a, margin)
        not_above = _first(confidence_sequence(difference - apart, alpha=level).high < 0)
        not_below = _first(confidence_sequence(difference + apart, alpha=level).low > 0)
        within = None if not_above is None or not_below is None else max(not_above, not_below)
        reached.append((within, Outcome.EQUIVALENT))
    times = [(at, outcome) for at, outcome in reached if at is not None]
    at, outcome = min(times, key=lambda each: each[0]) if times else (None, Outcome.OPEN)
    ends = (float(bounds.low[-1]), float(bounds.high[-1])) if len(difference) else (-math.inf, math.inf)
    low, high = ends if math.isfinite(ends[0]) and math.isfinite(ends[1]) else (None, None)
    return Judgement(pair, metric, outcome, at, low, high)


def _known(values: FloatArray, level: float) -> Precise:
    mean = float(np.mean(values)) if len(values) else 0.0
    if not math.isfinite(mean):
        return Precise(None)
    if not len(values):
        return Precise(mean)
    bounds = confidence_sequence(values, alpha=level)
    low, high = float(bounds.low[-1]), float(bounds.high[-1])
    if not (math.isfinite(low) and math.isfinite(high)) or mean == 0.0:
        return Precise(mean)
    return Precise(mean, low, high, (high - low) / 2.0 / abs(mean))


def _first(reached: npt.NDArray[np.bool_]) -> int | None:
    """Number of chunks after which `reached` [n] is first true, or None."""
    return int(np.argmax(reached)) + 1 if np.any(reached) else None


def _prefixes(values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean and sum of squares about it after each chunk, [..., n], and the numbers of chunks [n].

    Centred at the first value, so that a prefix never changes as chunks are added and a small spread about a large
    mean is not lost.
    """
    n = np.arange(1, values.shape[-1] + 1, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        centred = values - values[..., :1]
        mean = np.cumsum(centred, axis=-1) / n
        squares = np.cumsum(centred * centred, axis=-1) - n * mean * mean
        # what is left of equal values is rounding, not spread
        squares = np.where(squares > 1e-12 * np.cumsum(centred * centred, axis=-1), squares, 0.0)
        return mean + values[..., :1], squares, n
