"""Rule for a run that measured until its own rule was met: what was asked, what was reached, what more would take.

The width reached is that of the anytime-valid bounds (`bitloss.divergence.stopping`). Chunks that would do are
estimated by its square root law: n·(reached / asked)².
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from bitloss.display import decimal, rough_percent
from bitloss.records import Confidence, Finding, Outcome, Stopping

if TYPE_CHECKING:
    from pydantic import JsonValue

_NAMED = 10
"""Pairs or candidates named in the text; the rest is counted."""


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
        "decided": f"Pairs by mean KLD: {said}.{_settled(stopping)}",
        "precise": f"Asked for was mean KLD to within {rough_percent(stopping.precision or 0.0)}."
        f"{_reached(stopping)}{_would_do(stopping, chunks)}",
    }[stopping.rule]
    evidence: dict[str, JsonValue] = {
        "rule": stopping.rule,
        "chunks": chunks,
        "chunks_available": stopping.chunks_available,
    }
    if counts:
        evidence["pairs"] = dict(counts)
    if stopping.known:
        evidence["reached"] = {each.candidate: each.relative for each in stopping.known}
    return Finding(
        id="stopped-by-rule",
        title=(
            f"{chunks:,} of {stopping.chunks_available:,} chunks were enough"
            if stopping.met
            else f"The text of {stopping.chunks_available:,} chunks was not enough to meet the rule"
        ),
        text=f"{what} Chunks were taken in random order (seed {stopping.seed}); bounds and verdicts hold although one "
        f"looked after every block (confidence sequences, {rough_percent(stopping.alpha)} for the whole table). "
        "Standard errors of single figures are those of the chunks measured.",
        evidence=evidence,
        confidence=Confidence.MEASURED,
    )


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
    said = [
        f"{each.candidate} {'without bounds' if each.relative is None else rough_percent(each.relative)}"
        for each in stopping.known[:_NAMED]
    ]
    if not said:
        return ""
    more = len(stopping.known) - len(said)
    return (
        f" Reached: {', '.join(said)}{f', and {more} more' if more else ''} (half the width of bounds that hold "
        "whenever one stops; the ± of the tables is one standard error, and smaller)."
    )


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
