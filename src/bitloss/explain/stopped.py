"""Rule for a run that measured until its own rule was met: what was asked, what was reached, what more would take.

The width reached is that of the anytime-valid bounds (`bitloss.divergence.stopping`). Chunks that would do are
estimated by its square root law: n·(reached / asked)².
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from bitloss.display import decimal, many, rough_percent
from bitloss.records import Confidence, Finding, Outcome, Stopping

if TYPE_CHECKING:
    from collections.abc import Collection

    from pydantic import JsonValue

    from bitloss.records import Known

_NAMED = 10
"""Pairs or candidates named in the text; the rest is counted."""


def stopped(stopping: Stopping | None, chunks: int, unknown: Collection[str] = ()) -> Finding | None:
    """Say where measuring stopped and what was settled by then; fires when there was a rule.

    Args:
        stopping: the rule and its answer.
        chunks: chunks measured.
        unknown: candidates without a mean KLD.
    """
    if stopping is None:
        return None
    counts = Counter(each.outcome.value for each in stopping.settled)
    said = ", ".join(f"{n} {name}" for name, n in counts.items())
    what = {
        "decided": f"Pairs by mean KLD: {said}.{_settled(stopping)}",
        "precise": f"Asked for was mean KLD to within {rough_percent(stopping.precision or 0.0)}."
        f"{_reached(stopping)}{_would_do(stopping, chunks)}",
    }[stopping.rule]
    evidence: dict[str, JsonValue] = {
        "rule": stopping.rule,
        "chunks": chunks,
        "chunks_available": stopping.chunks_available,
    }
    needed = _needed(stopping)
    if needed is not None:
        evidence["chunks_needed"] = needed
    if counts:
        evidence["pairs"] = dict(counts)
    if stopping.known:
        evidence["reached"] = {each.candidate: each.relative for each in stopping.known}
    return Finding(
        id="stopped-by-rule",
        title=_title(stopping, chunks, needed, unknown),
        text=f"{what} Chunks were taken in random order (seed {stopping.seed}); bounds and verdicts hold although one "
        f"looked after every block (confidence sequences, {rough_percent(stopping.alpha)} for the whole table). "
        "Standard errors of single figures are those of the chunks measured.",
        evidence=evidence,
        confidence=Confidence.MEASURED,
    )


def _needed(stopping: Stopping) -> int | None:
    """Chunks after which the last pair was settled; None where the rule was not met, or is another."""
    if not stopping.met:
        return None
    return max((each.chunks for each in stopping.settled if each.chunks is not None), default=None)


def _title(stopping: Stopping, chunks: int, needed: int | None, unknown: Collection[str]) -> str:
    of = f"{stopping.chunks_available:,} chunks"
    if not stopping.met:
        return _unmet(stopping, unknown) or f"The text of {of} was not enough to meet the rule"
    if needed is None:
        return f"{chunks:,} of {of} were enough"
    computed = "" if needed == chunks else f" (looked at in blocks; {chunks:,} computed)"
    if not needed:
        return f"All files are identical: no chunk was needed{computed}"
    return f"Settled after {needed:,} of {of}{computed}"


def _unmet(stopping: Stopping, unknown: Collection[str]) -> str | None:
    """Why no text whatever would have met the rule; None where a longer one may."""
    never = sum(each.outcome is Outcome.UNDEFINED for each in stopping.settled)
    if never and never == len(stopping.settled):
        return "It could not be decided: no two candidates can be compared"
    if never:
        return (
            f"Not all could be decided: {never} of {many(len(stopping.settled), 'pair')} cannot be compared"
        )
    if stopping.rule == "precise" and unknown:
        return f"No precision can be reached: {many(len(unknown), 'candidate')} without a mean KLD"
    return None


def _settled(stopping: Stopping) -> str:
    """Each pair with what was settled of it, and the bounds of its difference."""
    words = {
        Outcome.BETTER: "{a} is better than {b}",
        Outcome.WORSE: "{b} is better than {a}",
        Outcome.EQUIVALENT: "{a} and {b} are equivalent",
        Outcome.IDENTICAL: "{a} and {b} are identical",
        Outcome.OPEN: "{a} and {b} are open",
        Outcome.UNDEFINED: "{a} and {b} cannot be compared",
    }
    said = []
    for each in stopping.settled[:_NAMED]:
        text = words[each.outcome].format(a=each.a, b=each.b)
        if each.low is not None and each.high is not None and each.outcome is not Outcome.IDENTICAL:
            text += f" ({each.a} less {each.b}: {decimal(each.low)} to {decimal(each.high)} nats)"
        said.append(text)
    if not said:
        return ""
    more = len(stopping.settled) - len(said)
    margin = (
        "" if stopping.margin is None else f" The margin of equivalence is {rough_percent(stopping.margin)}."
    )
    if any(each.outcome is Outcome.EQUIVALENT for each in stopping.settled):
        margin += (
            " Equivalent says that the difference was shown to be within the margin; the table of comparisons knows no "
            "margin, and may call the same pair a tie: no difference was shown."
        )
    return f" {'; '.join(said)}{f'; and {more} more' if more > 0 else ''}.{margin}"


def _reached(stopping: Stopping) -> str:
    """How well each mean is known, by the bounds the rule asks about."""
    said = [f"{each.candidate} {_width(each)}" for each in stopping.known[:_NAMED]]
    if not said:
        return ""
    more = len(stopping.known) - len(said)
    return (
        f" Reached: {', '.join(said)}{f', and {more} more' if more else ''} (half the width of bounds that hold "
        "whenever one stops; the ± of the tables is one standard error, and smaller)."
    )


def _width(known: Known) -> str:
    if known.relative is None:
        return "without bounds"
    if known.low == known.high == 0.0:
        return "exactly (its KLD is 0 in every token: it computes what the base computes)"
    return rough_percent(known.relative)


def _would_do(stopping: Stopping, chunks: int) -> str:
    """Chunks that would have met the rule, where the text was too short for it."""
    widest = max((each.relative for each in stopping.known if each.relative is not None), default=None)
    if stopping.met or widest is None or not stopping.precision or widest <= stopping.precision:
        return ""
    enough = chunks * (widest / stopping.precision) ** 2
    step = 10.0 ** (math.floor(math.log10(enough)) - 1)
    return (
        f" The width falls with the square root of the chunks: about {math.ceil(enough / step) * step:,.0f} would do "
        "(an estimate)."
    )
