"""Rules for question 4: what each route took in time and on the disk, beside what it bought.

A route is a precision by way of which files are made. Beside the cost stands what was found of the routes' files, type
by type: the same tensors, a tie by every metric that was tested, a difference, or that none was tested. A
recommendation is only made where every type that two routes share is one of the first two; where time and disk speak
for different routes, both are said. Every route is told against the dearest. Time speaks for a route only where it
differs by more than one run of one wall clock can be trusted with (`_SAME_TIME`, `_LEAST_SECONDS`).
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from bitloss.display import duration, percent, size
from bitloss.records import Candidate, Comparison, Confidence, Cost, Finding, Results, Source, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import JsonValue

_MAKING = ("convert", "imatrix", "quantize")
_TOLD = {Verdict.BETTER, Verdict.WORSE}
_CLOSE = 0.02
"""Sizes on the disk nearer than this are called equal: they differ by metadata."""
_SAME_TIME = 0.25
"""Differences of time below this share are none: each step ran once, and what else a machine does in between (other
processes, a file already in the page cache, the clock of a warm processor) moves the same step by a tenth and more."""
_LEAST_SECONDS = 5.0
"""Where no route took this long, times are not compared: starting a process and opening files is much of them."""


class Twin(NamedTuple):
    """The same type from two routes, and what a comparison said of them; None where it could not be tested."""

    routes: frozenset[str]
    verdict: Verdict | None
    type: str = ""


class _Routes(NamedTuple):
    """What the routes took: seconds and bytes by route, sizes of the sources."""

    seconds: Mapping[str, float]
    n_bytes: Mapping[str, int]
    sources: Mapping[str, int]


def is_whole(candidate: Candidate) -> bool:
    """Whether a file was made wholly from one source (not crossed)."""
    return candidate.imatrix_from in {None, candidate.weights_from}


def routes_only(results: Results) -> Results:
    """The results without files that were made to be crossed: what one would publish, or pick from."""
    kept = {candidate.name for candidate in results.candidates if is_whole(candidate)}
    return results.model_copy(
        update={
            "candidates": tuple(c for c in results.candidates if c.name in kept),
            "comparisons": tuple(c for c in results.comparisons if {c.a, c.b} <= kept),
        }
    )


def twin_verdicts(by_name: Mapping[str, Candidate], comparisons: Sequence[Comparison]) -> tuple[Twin, ...]:
    """Collect the verdicts on files of one type that were each made wholly from one source.

    Files that scored alike on every token are the same only if their tensors are: else that is a tie of this text.
    """
    twins = []
    for comparison in comparisons:
        a, b = by_name[comparison.a], by_name[comparison.b]
        if a.type != b.type or not (is_whole(a) and is_whole(b)):
            continue
        verdict = comparison.verdict
        if verdict is Verdict.IDENTICAL and a.tensors_sha256 != b.tensors_sha256:
            verdict = Verdict.TIE
        if a.weights_from and b.weights_from and a.weights_from != b.weights_from:
            twins.append(Twin(frozenset({a.weights_from, b.weights_from}), verdict, a.type))
    return tuple(twins)


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
    routes = _Routes(seconds, n_bytes, {source.name: source.bytes for source in sources})
    shared = [twin for twin in twins if twin.routes <= seconds.keys()]
    told = sum(twin.verdict in _TOLD for twin in shared)
    open_ = sum(twin.verdict is None for twin in shared)
    text = _took(routes, making, base)
    if shared:
        text += f" Comparisons of the routes' files that show a difference: {told} of {len(shared)}"
        text += f", and {open_} could not be tested." if open_ else "."
    text += _recommendation(routes, shared)
    evidence: dict[str, JsonValue] = {
        "seconds": dict(seconds),
        "bytes": dict(n_bytes),
        "source_bytes": dict(routes.sources),
        "comparisons": len(shared),
        "comparisons_with_a_difference": told,
        "comparisons_not_tested": open_,
        "types": dict(_by_type(shared)),
    }
    return Finding(
        id="route-costs",
        title=_title(routes, shared),
        text=text,
        evidence=evidence,
        confidence=Confidence.MEASURED,
        question=4,
        rows=("#costs", "#comparisons"),
    )


def _took(routes: _Routes, making: Sequence[Cost], base: str) -> str:
    counted = [kind for kind in _MAKING if any(c.kind == kind and c.route for c in making)]
    # files that were only made to be crossed belong to no route
    shared = [cost for cost in making if cost.route is None and cost.kind != "quantize"]
    text = "; ".join(
        f"{r}: {duration(routes.seconds[r])}, {size(routes.n_bytes[r])} on the disk"
        + (f" besides the source of {size(routes.sources[r])}" if r in routes.sources else "")
        for r in routes.seconds
    )
    text = f"By route ({' and '.join(counted)}): {text}."
    if shared:
        took = duration(sum(cost.seconds for cost in shared)), size(sum(cost.bytes for cost in shared))
        text += f" Shared by the routes ({', '.join(c.step for c in shared)}): {took[0]}, {took[1]}."
    if any(cost.kind == "convert" and cost.route == base for cost in making):
        text += f" The conversion to {base} is counted, though the base needs it in any case."
    text += (
        " Times are one run's, by the wall clock, with whatever else the machine did: a difference below "
        f"{percent(_SAME_TIME, digits=0)} is called about the same time, and times below {duration(_LEAST_SECONDS)} "
        "are not compared."
    )
    if any(cost.reused for cost in making):
        text += " Steps taken over from an earlier run count with the time they took then."
    return text


def _by_type(twins: Sequence[Twin]) -> dict[str, str]:
    """Of each type: ``the same tensors``, ``a tie``, ``a difference``, or ``not decided``."""
    found: dict[str, set[Verdict | None]] = defaultdict(set)
    for twin in twins:
        found[twin.type].add(twin.verdict)
    said = {}
    for kind, verdicts in found.items():
        if verdicts & _TOLD:
            said[kind] = "a difference"
        elif None in verdicts and Verdict.TIE not in verdicts:
            said[kind] = "not decided"
        else:
            said[kind] = "the same tensors" if verdicts == {Verdict.IDENTICAL} else "a tie"
    return said


def _dearest(routes: _Routes) -> str:
    """The route the others are told against: with the largest source, or where they do not differ the slowest."""
    cost: Mapping[str, float] = routes.seconds
    if routes.seconds.keys() <= routes.sources.keys() and len(set(routes.sources.values())) > 1:
        cost = {name: float(routes.sources[name]) for name in routes.seconds}
    return max(cost, key=lambda r: cost[r])


def _time(routes: _Routes, dear: str, other: str) -> float | None:
    """Time of `other` over that of `dear`: 1 where they are about the same, None where they are not compared."""
    ratio = routes.seconds[other] / routes.seconds[dear] if routes.seconds[dear] > 0 else None
    if ratio is None or max(routes.seconds[dear], routes.seconds[other]) < _LEAST_SECONDS:
        return None
    return ratio if abs(ratio - 1) >= _SAME_TIME else 1.0


def _title(routes: _Routes, twins: Sequence[Twin]) -> str:
    dear = _dearest(routes)
    alike: dict[str, list[str]] = defaultdict(list)
    for other in routes.seconds:
        if other != dear:
            alike[", ".join(_against(routes, twins, dear, other))].append(other)
    clauses = [f"{' or '.join(names)} instead of {dear}: {said}" for said, names in alike.items() if said]
    return "; ".join(clauses) or f"What {' and '.join(routes.seconds)} took"


def _against(routes: _Routes, twins: Sequence[Twin], dear: str, other: str) -> list[str]:
    """What `other` bought and cost beside `dear`, in a few words each."""
    parts: list[str] = []
    by_type = _by_type([twin for twin in twins if twin.routes == {dear, other}])
    for words in ("the same tensors", "a tie", "a difference", "not decided"):
        kinds = [kind for kind, said in by_type.items() if said == words]
        if kinds:
            parts.append(f"{words} ({', '.join(kinds)})" if any(kinds) else words)
    if dear in routes.sources and other in routes.sources and routes.sources[dear]:
        parts.append(_compared(routes.sources[other] / routes.sources[dear], "disk for the source"))
    time = _time(routes, dear, other)
    if time == 1:
        parts.append("about the same time")
    elif time is not None:
        parts.append(_compared(time, "time") + " in this one run")
    return parts


def _compared(ratio: float, what: str) -> str:
    """``half the disk``, ``38 % less time``, ``50 % more time``, ``the same disk``."""
    if abs(ratio - 1) < _CLOSE:
        return f"the same {what}"
    if abs(ratio - 0.5) < _CLOSE / 2:
        return f"half the {what}"
    return f"{percent(abs(1 - ratio), digits=0)} {'less' if ratio < 1 else 'more'} {what}"


def _recommendation(routes: _Routes, twins: Sequence[Twin]) -> str:
    dear = _dearest(routes)
    said: dict[str, list[str]] = defaultdict(list)
    for other in routes.seconds:
        if other != dear:
            said[_advice(routes, twins, dear, other)].append(other)
    return "".join(" " + words.replace(_OTHER, " or ".join(names)) for words, names in said.items())


_OTHER = "\0"
"""Stands for the route in an advice, so that routes with the same advice share a sentence."""


def _advice(routes: _Routes, twins: Sequence[Twin], dear: str, other: str) -> str:
    by_type = _by_type([twin for twin in twins if twin.routes == {dear, other}])
    if not by_type:
        return f"Files of {dear} and {_OTHER} were not compared, so nothing is recommended."
    told, undecided = (
        [kind for kind, said in by_type.items() if said == words] for words in ("a difference", "not decided")
    )
    if undecided and not told:
        return (
            f"Whether the files of {dear} and {_OTHER} differ could not be tested for "
            f"{', '.join(undecided) or 'all'}, so nothing is recommended."
        )
    if told:
        return (
            f"Between {dear} and {_OTHER} there is a difference ({', '.join(told) or 'see the comparisons'}): what it "
            "is worth is yours to say."
        )
    time = _time(routes, dear, other) or 1.0
    sizes = routes.sources
    smaller = dear in sizes and other in sizes and sizes[other] < sizes[dear] * (1 - _CLOSE)
    if time > 1:
        return (
            f"Nothing measured here speaks for {dear} but its time: {_OTHER} takes less disk, {dear} less time in this "
            "one run, and their files are no different on this text."
            if smaller
            else f"Nothing measured here speaks for {_OTHER}: take {dear}."
        )
    if smaller or time < 1:
        return f"Nothing measured here speaks for {dear}: take {_OTHER}."
    return f"Nothing measured here sets {dear} and {_OTHER} apart: take either."
