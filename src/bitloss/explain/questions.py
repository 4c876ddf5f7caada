"""The five questions an experiment answers, and which findings answer which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from bitloss.records import Finding

QUESTIONS: Final[Mapping[int, str]] = {
    1: "Two files differ in sha256, yet score the same. Why?",
    2: "Are all weights inside [6e-5, 65504]: does a cast to F16 lose nothing?",
    3: "Is one route better? What makes its files differ, the weights or the importance matrix?",
    4: "Is it a waste of time to go by way of F32 or BF16?",
    5: "How much of a divergence is the quantization, and how much the engine's arithmetic?",
}


class Answer(NamedTuple):
    """A question with what answers it.

    Attributes:
        number: 1 .. 5; None for findings that answer none of the questions.
        question: in words; empty for those.
        findings: in their order.
    """

    number: int | None
    question: str
    findings: tuple[Finding, ...]


def answers(findings: Sequence[Finding]) -> tuple[Answer, ...]:
    """Group findings by question, in the questions' order; what answers none of them comes last."""
    grouped = [
        Answer(number, text, tuple(each for each in findings if each.question == number))
        for number, text in QUESTIONS.items()
    ]
    rest = tuple(each for each in findings if each.question is None)
    return tuple(each for each in (*grouped, Answer(None, "", rest)) if each.findings)
