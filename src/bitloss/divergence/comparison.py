"""From two candidates on the same tokens to a verdict.

The difference a - b is taken token by token, so that what the text contributes cancels. Its standard
error is clustered by chunk or document (formula in ``clusters``), its test Student's t with G - 1 degrees
of freedom for G clusters (Cameron & Miller 2015, section VI), of several texts G less the number of texts.
Verdicts speak of a:

* ``identical``: every value of every token is equal, and none is at fault; nothing is tested;
* ``tie``: the p-value, adjusted over the whole table by Holm (1979), is above 0.05;
* ``better``, ``worse``: it is not, and the difference has that sign (lower KLD or ln PPL, more same
  tops).

With fewer than 10 clusters the difference is given, but no interval, p-value or verdict. Where a token of
either side has no finite value, or the difference is the same in every cluster (of a text), nothing can be tested
either: two columns of NaN are not called identical, whatever their bytes.
"""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from itertools import combinations
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from bitloss.divergence.clusters import ChunkIds, Clusters
from bitloss.divergence.metrics import NONFINITE_BASE, NONFINITE_CANDIDATE
from bitloss.divergence.statistics import mean_with_errors, same_top_share
from bitloss.errors import MismatchError
from bitloss.records import Verdict

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence

    from bitloss.divergence.metrics import FloatArray, TokenMetrics

ALPHA: Final = 0.05
_ROUNDING: Final = 1e-12
"""A standard error this small beside its difference is what rounding leaves of 0."""


class Metric(StrEnum):
    """What two candidates are compared by.

    KLD and ln PPL in nats, same top as a share (0..1).
    """

    KLD_MEAN = "kld_mean"
    LN_PPL = "ln_ppl"
    SAME_TOP = "same_top"


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """A paired comparison of candidates a and b by one metric.

    Attributes:
        metric: what is compared.
        difference: a minus b, in the metric's unit; None where undefined.
        se: its standard error, clustered.
        ci95: its 95 % confidence interval (of this comparison alone, not adjusted).
        p_value: two-sided p-value of "no difference" (not adjusted).
        p_holm: the same, adjusted over the table it belongs to (a table of one by :func:`compare`).
        verdict: what it says of a; None where no statement can be made.
        reason: why something above is None.
    """

    metric: Metric
    difference: float | None
    se: float | None = None
    ci95: tuple[float, float] | None = None
    p_value: float | None = None
    p_holm: float | None = None
    verdict: Verdict | None = None
    reason: str | None = None


class Pair(NamedTuple):
    """Names of two candidates."""

    a: str
    b: str


def table_pairs(measured_as: Mapping[str, Hashable]) -> tuple[Pair, ...]:
    """Every pair of different candidates, and each twin with its first, in the order of the table.

    A twin against others would repeat its first's comparisons word for word, and weaken the adjustment by them.

    Args:
        measured_as: by candidate, what it was measured as; equal for twins (equal tensors).
    """
    first: dict[Hashable, str] = {}
    for name, key in measured_as.items():
        first.setdefault(key, name)
    firsts = set(first.values())
    return tuple(
        Pair(a, b)
        for a, b in combinations(measured_as, 2)
        if a in firsts and (b in firsts or measured_as[a] == measured_as[b])
    )


def compare(a: TokenMetrics, b: TokenMetrics, chunk_ids: ChunkIds | Clusters, metric: Metric) -> Comparison:
    """Compare two candidates by one metric, as a table of its own (``p_holm = p_value``).

    Args:
        a: metrics of n tokens under the first candidate.
        b: metrics of the same tokens under the second.
        chunk_ids: integer [n], the chunk of each token; or how they are clustered otherwise.
        metric: what to compare.

    Raises:
        MismatchError: a, b and chunk_ids are not of one length.
    """
    if len(a) != len(b):
        raise MismatchError("candidates were scored on different tokens", expected=len(a), found=len(b))
    faults = _faults(a, b)
    if len(a) and not faults and a.equals(b):
        return Comparison(
            metric, 0.0, verdict=Verdict.IDENTICAL, reason="every token is equal: nothing to test"
        )
    with np.errstate(invalid="ignore"):
        clusters = Clusters.fitting(chunk_ids, len(a))
        difference = mean_with_errors(column(a, metric) - column(b, metric), clusters)
    if difference.value is None or difference.se_clustered is None:
        reason = (difference.reason or "") + (faults if difference.value is None else "")
        return Comparison(metric, difference.value, reason=reason or None)
    value, se = difference.value, difference.se_clustered
    if se <= _ROUNDING * abs(value):
        tie = value == 0.0
        where = f"{value} in every {clusters.noun}"
        if clusters.texts > 1:
            where = f"the same in every {clusters.noun} of a text"
        return Comparison(
            *(metric, value, 0.0),
            verdict=Verdict.TIE if tie else None,
            reason=f"no test: the difference is {where}",
        )
    from scipy import special  # scipy takes a fifth of a second to import, scipy.stats a whole one

    margin = float(special.stdtrit(clusters.degrees, 0.975)) * se
    p_value = float(2.0 * special.stdtr(clusters.degrees, -abs(value) / se))
    found = Comparison(metric, value, se, (value - margin, value + margin), p_value)
    return judge(found, p_value)


def _faults(a: TokenMetrics, b: TokenMetrics) -> str:
    """Whose logits are at fault, to follow the reason of what cannot be compared; empty where none are."""
    base = np.count_nonzero((a.nonfinite | b.nonfinite) & NONFINITE_BASE)
    of_a, of_b = (np.count_nonzero(each.nonfinite & NONFINITE_CANDIDATE) for each in (a, b))
    if not (base or of_a or of_b):
        return ""
    return f" (logits NaN or infinite: A in {of_a:,}, B in {of_b:,}, base in {base:,} tokens)"


def compare_all(
    tokens: Mapping[str, TokenMetrics],
    pairs: Iterable[Pair],
    chunk_ids: ChunkIds | Clusters,
    metrics: Sequence[Metric] = tuple(Metric),
) -> dict[tuple[Pair, Metric], Comparison]:
    """Compare every pair by every metric, with p-values and verdicts adjusted over the whole table.

    Args:
        tokens: metrics of the same n tokens by candidate name.
        pairs: names of a and b for each comparison.
        chunk_ids: integer [n], the chunk of each token; or how they are clustered otherwise.
        metrics: what to compare by.

    Raises:
        MismatchError: candidates and chunk_ids are not of one length.
    """
    table = {
        (pair, metric): compare(tokens[pair.a], tokens[pair.b], chunk_ids, metric)
        for pair in pairs
        for metric in metrics
    }
    tested = {key: row.p_value for key, row in table.items() if row.p_value is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    return {key: judge(row, adjusted[key]) if key in adjusted else row for key, row in table.items()}


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: p-values that may be compared with one level over the whole family.

    In rising order the i-th of m (from 0) becomes min(1, (m - i)·p), made monotone. Source: Holm (1979), A
    simple sequentially rejective multiple test procedure.
    """
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def judge(row: Comparison, p_holm: float) -> Comparison:
    """Fill in the adjusted p-value and what it says."""
    assert row.difference is not None
    gain = row.difference if row.metric is Metric.SAME_TOP else -row.difference
    verdict = Verdict.TIE if p_holm > ALPHA else Verdict.BETTER if gain > 0 else Verdict.WORSE
    return dataclasses.replace(row, p_holm=p_holm, verdict=verdict)


def column(tokens: TokenMetrics, metric: Metric) -> FloatArray:
    """What a metric is the mean of: [n], NaN or infinite where a token has no finite value."""
    match metric:
        case Metric.KLD_MEAN:
            return tokens.kld
        case Metric.LN_PPL:
            return tokens.nll
        case Metric.SAME_TOP:
            return same_top_share(tokens)
