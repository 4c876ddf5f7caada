"""What the results say, each sentence with the numbers it rests on.

A rule is a pure function from parts of the results to a :class:`~bitloss.records.Finding`, or to None when
its evidence is not there. No rule says more than its evidence: equal tensors prove that only what lies
outside them differs, a tie says that this text shows no difference, the noise floor bounds only what it
varies.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, NamedTuple

from bitloss.display import decimal, duration, percent, probability, size
from bitloss.explain.cautions import base_of_something_else, calibrated_on_the_measured_text, not_finite
from bitloss.records import (
    Candidate,
    Comparison,
    Confidence,
    Cost,
    Figure,
    Finding,
    NoiseFloor,
    Results,
    Source,
    Stopping,
    Verdict,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic import JsonValue

_METRIC_TITLES = {"kld_mean": "mean KLD", "ln_ppl": "ln PPL", "same_top": "same top p"}
_PERCENT = {"same_top"}
_HASH_DIGITS = 12


def findings(results: Results) -> tuple[Finding, ...]:
    """Apply every rule to `results`, most certain evidence first; findings already in them are ignored."""
    return tuple(finding for finding in _all(results) if finding is not None)


def _all(results: Results) -> Iterator[Finding | None]:
    by_name = {candidate.name: candidate for candidate in results.candidates}
    for candidate in results.candidates:
        if candidate.identical_to is not None:
            yield identical_tensors(by_name[candidate.identical_to], candidate)
    yield calibrated_on_the_measured_text(results)
    yield base_of_something_else(results.base)
    yield not_finite(results.candidates)
    pairs: dict[tuple[str, str], list[Comparison]] = defaultdict(list)
    for comparison in results.comparisons:
        pairs[comparison.a, comparison.b].append(comparison)
    for (a, b), group in pairs.items():
        yield same_type_pair(by_name[a], by_name[b], group, results.text.scored_tokens)
    yield stopped(results.stopping, results.text.chunks)
    yield engine_noise(results.noise_floor, results.candidates)
    twins = twin_verdicts(by_name, results.comparisons)
    yield route_costs(results.costs, twins, base=results.base.name, sources=results.sources)


def _sources(a: str | None, b: str | None) -> str:
    return f"{a or 'none'} and {b or 'none'}"


# --------------------------------------------------------------------------------------------- stopping


def stopped(stopping: Stopping | None, chunks: int) -> Finding | None:
    """Say where measuring stopped and what was settled by then; fires when there was a rule.

    Args:
        stopping: the rule and its answer.
        chunks: chunks measured.
    """
    if stopping is None:
        return None
    counts = Counter(each.outcome.value for each in stopping.settled)
    said = ", ".join(f"{n} {name}" for name, n in counts.items())
    what = {
        "decided": f"Pairs by mean KLD: {said}.",
        "precise": f"Asked for was mean KLD to within {percent(stopping.precision or 0.0)}.",
    }[stopping.rule]
    return Finding(
        id="stopped-by-rule",
        title=(
            f"{chunks} of {stopping.chunks_available} chunks were enough"
            if stopping.met
            else f"The text of {stopping.chunks_available} chunks was not enough to meet the rule"
        ),
        text=f"{what} Chunks were taken in random order (seed {stopping.seed}); bounds and verdicts hold although one "
        f"looked after every block (confidence sequences, {percent(stopping.alpha)} for the whole table). Standard "
        "errors of single figures are those of the chunks measured.",
        evidence={
            "rule": stopping.rule,
            "chunks": chunks,
            "chunks_available": stopping.chunks_available,
            **({"pairs": dict(counts)} if counts else {}),
        },
        confidence=Confidence.MEASURED,
    )


# ------------------------------------------------------------------------------------ identical tensors


def identical_tensors(first: Candidate, second: Candidate) -> Finding | None:
    """Point out two files with equal tensors that are not the same file.

    Fires when the tensor hashes are equal and the file hashes are not.
    """
    if first.tensors_sha256 != second.tensors_sha256 or first.sha256 == second.sha256:
        return None
    by_bytes = abs(first.bytes - second.bytes)
    sizes = f"{by_bytes} bytes apart ({first.bytes} and {second.bytes})" if by_bytes else "equal in size"
    text = (
        f"Every tensor of {second.name} has the name, type, shape and bytes of the one in {first.name} "
        f"(tensor hash {first.tensors_sha256[:_HASH_DIGITS]}…), so they were measured once. The files are "
        f"{sizes} and their sha256 differ ({first.sha256[:_HASH_DIGITS]}… and "
        f"{second.sha256[:_HASH_DIGITS]}…): all that differs lies outside the tensors, in the metadata or in "
        "the layout of the file."
    )
    weights = f"weights from {_sources(first.weights_from, second.weights_from)}"
    imatrix = f"importance matrices from {_sources(first.imatrix_from, second.imatrix_from)}"
    changed = [weights] if first.weights_from != second.weights_from else []
    changed += [imatrix] if first.imatrix_from != second.imatrix_from else []
    if changed:
        text += f" Thus {' with '.join(changed)} gave the same {first.type} bytes."
    return Finding(
        id="identical-tensors",
        title=f"{first.name} and {second.name} are the same weights in different files",
        text=text,
        evidence={
            "candidates": [first.name, second.name],
            "tensors_sha256": first.tensors_sha256,
            "sha256": [first.sha256, second.sha256],
            "bytes": [first.bytes, second.bytes],
        },
        confidence=Confidence.PROVEN,
    )


# --------------------------------------------------------------------------------- pairs of the same type


def same_type_pair(a: Candidate, b: Candidate, group: Sequence[Comparison], tokens: int) -> Finding | None:
    """Give the verdict on two files of one type that were made along different routes.

    Args:
        a: first candidate.
        b: second candidate.
        group: their comparisons, one per metric.
        tokens: number of tokens scored.

    Fires when the types are equal, the sources are not, and some comparison was tested (not undecided, not of
    identical tensors).
    """
    routes_differ = (a.weights_from, a.imatrix_from) != (b.weights_from, b.imatrix_from)
    tested = [c for c in group if c.verdict not in {None, Verdict.IDENTICAL}]
    if a.type != b.type or not routes_differ or not tested:
        return None
    text = f"{_what_differs(a, b)} On the same {tokens} tokens, paired and clustered by chunk: "
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
    )


_EVIDENCE = {"metric", "difference", "ci95", "p_value", "p_holm", "verdict"}


def _what_differs(a: Candidate, b: Candidate) -> str:
    weights = f"weights from {_sources(a.weights_from, b.weights_from)}"
    imatrix = f"importance matrices from {_sources(a.imatrix_from, b.imatrix_from)}"
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
            else f"The engine's noise is {_share(share)} of the smallest divergence measured"
        ),
        text=text,
        evidence=evidence,
        confidence=Confidence.MEASURED,
    )


def _value(figure: Figure | None) -> float | None:
    return None if figure is None else figure.value


def _share(share: float) -> str:
    return "0 %" if share == 0 else f"{100 * share:.2g} %"


# ----------------------------------------------------------------------------------------------- costs


_MAKING = ("convert", "imatrix", "quantize")


class Twin(NamedTuple):
    """The same type from two routes, and what a comparison said of them."""

    routes: frozenset[str]
    verdict: Verdict


def twin_verdicts(by_name: Mapping[str, Candidate], comparisons: Sequence[Comparison]) -> tuple[Twin, ...]:
    """Collect the verdicts on files of one type that were each made wholly from one source."""
    twins = []
    for comparison in comparisons:
        a, b = by_name[comparison.a], by_name[comparison.b]
        if a.type != b.type or comparison.verdict is None or not (_whole(a) and _whole(b)):
            continue
        if a.weights_from and b.weights_from and a.weights_from != b.weights_from:
            twins.append(Twin(frozenset({a.weights_from, b.weights_from}), comparison.verdict))
    return tuple(twins)


def _whole(candidate: Candidate) -> bool:
    return candidate.imatrix_from in {None, candidate.weights_from}


def route_costs(
    costs: Sequence[Cost], twins: Sequence[Twin], *, base: str, sources: Sequence[Source] = ()
) -> Finding | None:
    """Add up what each route took in time and disk, beside what it bought.

    Args:
        costs: time and disk of the steps.
        twins: verdicts on the routes' files against each other.
        base: name of the base; its conversion serves the measurement as well.
        sources: the full-precision files, one a route; their sizes are told beside what was made from them.

    Counted is what makes files (conversion, importance matrix, quantization), not what measures them. Fires
    when at least two routes have such costs.
    """
    making = [cost for cost in costs if cost.kind in _MAKING]
    seconds: dict[str, float] = defaultdict(float)
    n_bytes: dict[str, int] = defaultdict(int)
    for cost in making:
        if cost.route is not None:
            seconds[cost.route] += cost.seconds
            n_bytes[cost.route] += cost.bytes
    if len(seconds) < 2:
        return None
    counted = [kind for kind in _MAKING if any(c.kind == kind and c.route for c in making)]
    shared = [cost for cost in making if cost.route is None]
    files = {source.name: source.bytes for source in sources}
    text = "; ".join(
        f"{r}: {duration(seconds[r])}, {size(n_bytes[r])} on the disk"
        + (f" besides the source of {size(files[r])}" if r in files else "")
        for r in seconds
    )
    text = f"By route ({' and '.join(counted)}): {text}."
    if shared:
        took = duration(sum(cost.seconds for cost in shared)), size(sum(cost.bytes for cost in shared))
        text += f" Shared by the routes ({', '.join(c.step for c in shared)}): {took[0]}, {took[1]}."
    if any(cost.kind == "convert" and cost.route == base for cost in making):
        text += f" The conversion to {base} is counted, though the base needs it in any case."
    if any(cost.reused for cost in making):
        text += " Steps taken over from an earlier run count with the time they took then."
    cross = [twin.verdict for twin in twins if twin.routes <= seconds.keys()]
    told = sum(verdict in {Verdict.BETTER, Verdict.WORSE} for verdict in cross)
    if cross:
        text += f" Comparisons of the routes' files that show a difference: {told} of {len(cross)}."
    dear, cheap = max(seconds, key=lambda r: seconds[r]), min(seconds, key=lambda r: seconds[r])
    if cross and not told:
        text += f" Nothing measured here speaks for the dearer route ({dear})."
    return Finding(
        id="route-costs",
        title=(
            f"The {dear} route took {seconds[dear] / seconds[cheap]:.2f} times as long as {cheap}"
            if seconds[cheap] > 0
            else f"What the routes {', '.join(seconds)} took"
        ),
        text=text,
        evidence={
            "seconds": dict(seconds),
            "bytes": dict(n_bytes),
            "source_bytes": dict(files),
            "comparisons": len(cross),
            "comparisons_with_a_difference": told,
        },
        confidence=Confidence.MEASURED,
    )
