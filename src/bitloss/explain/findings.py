"""What the results say, each sentence with the numbers it rests on.

A rule is a pure function from parts of the results to a :class:`~bitloss.records.Finding`, or to None when
its evidence is not there. No rule says more than its evidence: equal tensors prove that only what lies
outside them differs, a tie says that this text shows no difference, the noise floor bounds only what it
varies.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations
from typing import TYPE_CHECKING

from bitloss.display import decimal, percent, probability, rough_percent, visible
from bitloss.explain.cautions import (
    base_of_something_else,
    calibrated_on_the_measured_text,
    importance_left_open,
    not_finite,
    quantized_base,
)
from bitloss.explain.differences import imatrix_route, not_crossed, ties, why_different
from bitloss.explain.losses import cast_losses, not_counted
from bitloss.explain.routes import is_whole, route_costs, twin_verdicts
from bitloss.explain.sameness import identical_tensors, none_identical, sources_of, why_identical
from bitloss.explain.sensitive import most_sensitive
from bitloss.explain.stopped import stopped
from bitloss.records import (
    Candidate,
    Comparison,
    Confidence,
    Figure,
    Finding,
    NoiseFloor,
    Results,
    Verdict,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic import JsonValue

_METRIC_TITLES = {"kld_mean": "mean KLD", "ln_ppl": "ln PPL", "same_top": "same top p"}
_PERCENT = {"same_top"}


def findings(results: Results) -> tuple[Finding, ...]:
    """Apply every rule to `results`; what answers a question first, in the questions' order.

    Findings already in the results are ignored.
    """
    found = [finding for finding in _all(results) if finding is not None]
    return tuple(sorted(found, key=lambda finding: finding.question or _LAST))


_LAST = 9


def _all(results: Results) -> Iterator[Finding | None]:
    by_name = {candidate.name: candidate for candidate in results.candidates}
    routes = tuple(dict.fromkeys(c.weights_from for c in results.candidates if c.weights_from))
    yield from _same(results, by_name)
    yield from cast_losses(results.audit, results.model.dtype, routes)
    yield not_counted(results.audit, routes)
    yield from _different(results, by_name)
    twins = twin_verdicts(by_name, results.comparisons)
    yield route_costs(results.costs, twins, base=results.base.name, sources=results.sources)
    yield engine_noise(results.noise_floor, results.candidates)
    yield no_noise_floor(results.noise_floor, routes)
    yield most_sensitive(results.sensitivity)
    yield calibrated_on_the_measured_text(results)
    yield importance_left_open(results.candidates)
    yield base_of_something_else(results.base)
    yield quantized_base(results)
    yield not_finite(results.candidates)
    means = {each.name: each.metrics.get("kld_mean") for each in results.candidates}
    unknown = [name for name, figure in means.items() if figure is not None and figure.value is None]
    yield stopped(results.stopping, results.text.chunks, unknown)


def _same(results: Results, by_name: Mapping[str, Candidate]) -> Iterator[Finding | None]:
    """Question 1. Crossed files are told of with the cross: nobody publishes them."""
    whole = [candidate for candidate in results.candidates if is_whole(candidate)]
    for candidate in whole:
        if candidate.identical_to is not None and is_whole(by_name[candidate.identical_to]):
            yield identical_tensors(by_name[candidate.identical_to], candidate)
    for pair in combinations(whole, 2):
        yield why_identical(pair, results.audit, results.cross)
    yield none_identical(results)


def _different(results: Results, by_name: Mapping[str, Candidate]) -> Iterator[Finding | None]:
    """Question 3."""
    pairs: dict[tuple[str, str], list[Comparison]] = defaultdict(list)
    for comparison in results.comparisons:
        pairs[comparison.a, comparison.b].append(comparison)
    for (a, b), group in pairs.items():
        if is_whole(by_name[a]) and is_whole(by_name[b]):
            text = results.text
            yield same_type_pair(by_name[a], by_name[b], group, text.scored_tokens, text.clustered)
            yield pair_not_told(by_name[a], by_name[b], group, results.text.scored_tokens)
    for attribution in results.cross.attributions if results.cross else ():
        yield why_different(attribution)
    for pair in results.cross.imatrices if results.cross else ():
        yield imatrix_route(pair, results.cross.halves if results.cross else ())
    yield not_crossed(results.candidates, results.cross)
    yield ties(results.comparisons)


# --------------------------------------------------------------------------------- pairs of the same type


def same_type_pair(
    a: Candidate,
    b: Candidate,
    group: Sequence[Comparison],
    tokens: int,
    clustered: str = "clustered by chunk",
) -> Finding | None:
    """Give the verdict on two files of one type that were made along different routes.

    Args:
        a: first candidate.
        b: second candidate.
        group: their comparisons, one per metric.
        tokens: number of tokens scored.
        clustered: how errors are clustered, in words.

    Fires when the types are equal, the sources are not, and some comparison was tested (not undecided, not of
    identical tensors).
    """
    routes_differ = (a.weights_from, a.imatrix_from) != (b.weights_from, b.imatrix_from)
    tested = [c for c in group if c.verdict not in {None, Verdict.IDENTICAL}]
    if a.type != b.type or not routes_differ or not tested:
        return None
    text = f"{_what_differs(a, b)} On the same {tokens:,} tokens, paired and {clustered}: "
    text += "; ".join(_sentence(c) for c in tested) + "."
    if any(c.verdict is Verdict.TIE for c in tested):
        text += " A tie means that this text shows no difference, not that there is none."
    return Finding(
        id="same-type-pair",
        title=_pair_title(a, b, tested),
        text=text,
        evidence={
            "candidates": [a.name, b.name],
            "tokens": tokens,
            "comparisons": [c.model_dump(mode="json", include=_EVIDENCE) for c in tested],
        },
        confidence=Confidence.MEASURED,
        question=3,
        rows=(a.name, b.name, "#comparisons"),
    )


def pair_not_told(a: Candidate, b: Candidate, group: Sequence[Comparison], tokens: int) -> Finding | None:
    """Say that two files of one type along different routes, with different tensors, could not be told apart or tested.

    Fires where `same_type_pair` has nothing to rest on: no comparison was tested. Either the text was too short, or
    every token scored the same although the tensors differ.
    """
    routes_differ = (a.weights_from, a.imatrix_from) != (b.weights_from, b.imatrix_from)
    tested = any(c.verdict not in {None, Verdict.IDENTICAL} for c in group)
    if a.type != b.type or not routes_differ or a.tensors_sha256 == b.tensors_sha256 or tested:
        return None
    equal = all(c.verdict is Verdict.IDENTICAL for c in group)
    reasons = list(dict.fromkeys(c.reason for c in group if c.verdict is None and c.reason))
    text = f"{_what_differs(a, b)} Their tensors differ. "
    text += (
        f"On these {tokens:,} tokens they scored the same, token by token: what differs does not show on this text."
        if equal
        else f"Which is nearer to the base was not tested: {'; '.join(reasons) or 'no reason was kept'}. Whether "
        "what their figures differ by is more than chance is not known."
    )
    return Finding(
        id="pair-not-told",
        title=f"{a.name} and {b.name}: {'the same on every token' if equal else 'not decided'}",
        text=text,
        evidence={
            "candidates": [a.name, b.name],
            "tokens": tokens,
            "comparisons": [c.model_dump(mode="json", include={*_EVIDENCE, "reason"}) for c in group],
        },
        confidence=Confidence.MEASURED,
        question=3,
        rows=(a.name, b.name, "#comparisons"),
    )


_EVIDENCE = {"metric", "difference", "ci95", "p_value", "p_holm", "verdict"}


def _what_differs(a: Candidate, b: Candidate) -> str:
    weights = f"weights from {sources_of(a.weights_from, b.weights_from)}"
    imatrix = f"importance matrices from {sources_of(a.imatrix_from, b.imatrix_from)}"
    if a.weights_from == b.weights_from:
        return f"They were made from the same weights, with {imatrix}."
    if a.imatrix_from == b.imatrix_from:
        return f"They were made with the same importance matrix, {weights}."
    return f"They were made with {weights} and {imatrix}."


def _sentence(comparison: Comparison) -> str:
    name = _METRIC_TITLES.get(comparison.metric, comparison.metric)
    write = percent if comparison.metric in _PERCENT else decimal
    parts = []
    if comparison.difference is not None:
        parts.append(f"difference {write(comparison.difference)}")
    if comparison.ci95 is not None:
        low, high = comparison.ci95
        parts.append(f"95 % interval {write(low)} to {write(high)}")
    if comparison.p_holm is not None:
        parts.append(f"p {_equals(probability(comparison.p_holm))} after Holm's correction")
    verdict = "a tie"
    if comparison.verdict is not Verdict.TIE:
        verdict = f"{comparison.a if comparison.verdict is Verdict.BETTER else comparison.b} is better"
    return f"{name}: {verdict} ({', '.join(parts)})"


def _equals(p_value: str) -> str:
    return p_value if p_value.startswith("<") else f"= {p_value}"


def _pair_title(a: Candidate, b: Candidate, tested: Sequence[Comparison]) -> str:
    verdicts = {c.verdict for c in tested}
    if verdicts == {Verdict.TIE}:
        return f"{a.name} and {b.name}: a tie"
    if verdicts == {Verdict.BETTER}:
        return f"{a.name} is better than {b.name}"
    if verdicts == {Verdict.WORSE}:
        return f"{b.name} is better than {a.name}"
    return f"{a.name} and {b.name}: the verdict depends on the metric"


# ----------------------------------------------------------------------------------------- engine noise


def engine_noise(floor: NoiseFloor | None, candidates: Sequence[Candidate]) -> Finding | None:
    """Set the engine's own arithmetic noise beside each measured divergence.

    Fires when the noise floor has a mean KLD and some candidate has one above zero.
    """
    floor_kld = None if floor is None else _value(floor.metrics.get("kld_mean"))
    measured = {
        c.name: kld
        for c in candidates
        if c.identical_to is None and (kld := _value(c.metrics.get("kld_mean"))) is not None and kld > 0
    }
    if floor is None or floor_kld is None or not measured:
        return None
    nearest = min(measured, key=lambda name: measured[name])
    share = floor_kld / measured[nearest]
    lost = sorted(name for name, kld in measured.items() if kld < 2 * floor_kld)
    text = (
        f"The base against itself, evaluated again with another order of arithmetic ({floor.how}), has a "
        f"mean KLD of {decimal(floor_kld)}; the smallest divergence measured is {decimal(measured[nearest])} "
        f"({nearest}), the largest {decimal(max(measured.values()))}."
    )
    if lost:
        text += f" Less than twice the floor, so not to be told from noise: {', '.join(lost)}."
    text += (
        " The floor holds only what changes with the order of sums. Rounding of activations inside products "
        "with quantized or 16-bit weights comes with the file's types and is part of what was measured."
    )
    evidence: dict[str, JsonValue] = {"noise_floor_kld_mean": floor_kld}
    evidence["kld_mean"] = dict(measured)
    evidence["share_of_floor"] = {name: floor_kld / kld for name, kld in measured.items()}
    return Finding(
        id="engine-noise",
        title=(
            f"{len(lost)} of {len(measured)} divergences cannot be told from the engine's noise"
            if lost
            else f"The engine's noise is {rough_percent(share)} of the smallest divergence measured"
        ),
        text=text,
        evidence=evidence,
        confidence=Confidence.MEASURED,
        question=5,
        rows=(*map(visible, measured), "#measurements"),
    )


def no_noise_floor(floor: NoiseFloor | None, routes: Sequence[str]) -> Finding | None:
    """Say that the engine's noise is not known; fires when routes were measured without a noise floor.

    Or with one that has no mean KLD.
    """
    known = floor is not None and _value(floor.metrics.get("kld_mean")) is not None
    if known or not routes:
        return None
    return Finding(
        id="no-noise-floor",
        title="How large the engine's own noise is was not measured",
        text="Without a noise floor no part of these divergences can be laid to the engine's arithmetic.",
        evidence={"routes": list(routes)},
        confidence=Confidence.PROVEN,
        question=5,
    )


def _value(figure: Figure | None) -> float | None:
    return None if figure is None else figure.value
