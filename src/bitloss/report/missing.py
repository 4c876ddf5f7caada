"""What a report says in the place of something that is not there: candidates, comparisons, an audit."""

from __future__ import annotations

from bitloss.explain.questions import QUESTIONS, Answer, answers
from bitloss.records import Results

_AUDITED = 2
"""The question that an audit answers."""
NO_AUDIT = (
    "No audit of the weights was made in this run, so this is not known. `bitloss audit MODEL` makes one; "
    "`bitloss run` does so by itself."
)
NOTHING_TO_SAY = "Nothing here calls for a remark; the tables below are all there is."


def no_candidates(results: Results) -> str | None:
    """A sentence for a run in which no file was measured; None where some were."""
    if results.candidates:
        return None
    return f"This run has no candidates yet: no file was measured against {results.base.name}."


def no_comparisons(results: Results) -> str | None:
    """Why there are no comparisons; None where there are some."""
    if results.comparisons:
        return None
    many = len(results.candidates)
    if not many:
        return "None: this run has no candidates yet."
    if many == 1:
        return f"None: this run has one candidate, {results.candidates[0].name}, and a comparison takes two."
    return "None were made in this run."


def answered(results: Results) -> tuple[Answer, ...]:
    """Findings by question; without an audit question 2 is among them, for `NO_AUDIT` to stand there.

    Where none of the questions is answered (`bitloss measure` of one file, `bitloss sensitivity`), none is put.
    """
    found = answers(results.findings)
    numbers = [each.number for each in found if each.number is not None]
    if results.audit is not None or _AUDITED in numbers or not numbers:
        return found
    before = tuple(each for each in found if each.number is not None and each.number < _AUDITED)
    return (*before, Answer(_AUDITED, QUESTIONS[_AUDITED], ()), *found[len(before) :])
