"""Where measuring stopped by a rule: what was settled, how many chunks it took, and what no text would settle."""

from __future__ import annotations

import pytest

from bitloss.explain.stopped import stopped
from bitloss.records import Known, Outcome, Results, Settled, Stopping


def test_a_rule_names_each_pair_with_its_direction_and_the_margin(sample_results: Results) -> None:
    pairs = [
        ("a", "b", Outcome.BETTER, -0.002, -0.001),
        ("a", "c", Outcome.WORSE, 0.001, 0.002),
        ("b", "c", Outcome.EQUIVALENT, -1e-5, 2e-5),
        ("c", "d", Outcome.IDENTICAL, 0.0, 0.0),
        ("a", "d", Outcome.OPEN, None, None),
    ]
    stopping = Stopping.model_construct(
        rule="decided", margin=0.05, precision=None, met=True, chunks_available=90, seed=0, alpha=0.05,
        settled=tuple(Settled(a=a, b=b, outcome=o, chunks=8, low=low, high=high) for a, b, o, low, high in pairs),
    )  # fmt: skip
    finding = stopped(stopping, 32)
    assert finding is not None
    assert (
        "a is better than b (a less b: -0.002000 to -0.001000 nats); c is better than a (a less c: 0.001000 to "
        "0.002000 nats); b and c are equivalent (b less c: -1.000e-05 to 2.000e-05 nats); c and d are identical; "
        "a and d are open. The margin of equivalence is 5 %. Equivalent says that the difference was shown to be "
        "within the margin; the table of comparisons knows no margin, and may call the same pair a tie: no difference "
        "was shown."
    ) in finding.text
    less = stopped(stopping.model_copy(update={"settled": stopping.settled[:2]}), 32)
    assert less is not None
    assert "Equivalent" not in less.text


def _precise(*widths: float | None, met: bool) -> Stopping:
    known = (Known(candidate=f"c{i}", low=None, high=None, relative=w) for i, w in enumerate(widths))
    return Stopping(
        rule="precise", margin=None, precision=0.03, met=met, chunks_available=37, seed=0, alpha=0.05,
        known=tuple(known),
    )  # fmt: skip


def test_a_precision_that_was_not_reached_says_how_far_it_got() -> None:
    finding = stopped(_precise(0.12, 0.031, None, met=False), 37)
    assert finding is not None
    assert finding.text.startswith(
        "Asked for was mean KLD to within 3 %. Reached: c0 12 %, c1 3.1 %, c2 without bounds (half the width of bounds "
        "that hold whenever one stops; the ± of the tables is one standard error, and smaller). The width falls with "
        "the square root of the chunks: about 600 would do (an estimate)."  # 37 · (0.12 / 0.03)² = 592
    )
    assert finding.evidence["reached"] == {"c0": 0.12, "c1": 0.031, "c2": None}
    met = stopped(_precise(0.02, 0.03, met=True), 32)
    assert met is not None
    assert "Reached: c0 2 %, c1 3 %" in met.text
    assert "would do" not in met.text
    nothing = stopped(_precise(None, met=False), 5)
    assert nothing is not None
    assert "would do" not in nothing.text


def _decided(*settled: tuple[Outcome, int | None], met: bool) -> Stopping:
    pairs = tuple(
        Settled(a=f"a{i}", b=f"b{i}", outcome=outcome, chunks=at, low=None, high=None)
        for i, (outcome, at) in enumerate(settled)
    )
    return Stopping(
        rule="decided", margin=None, precision=None, met=met, chunks_available=40, seed=0, alpha=0.05, settled=pairs
    )  # fmt: skip


@pytest.mark.parametrize(
    ("stopping", "title", "needed"),
    [
        (
            _decided((Outcome.BETTER, 13), (Outcome.WORSE, 11), (Outcome.IDENTICAL, 0), met=True),
            "Settled after 13 of 40 chunks (looked at in blocks; 16 computed)",
            13,
        ),
        (_decided((Outcome.BETTER, 16), met=True), "Settled after 16 of 40 chunks", 16),
        (
            _decided((Outcome.IDENTICAL, 0), met=True),
            "All files are identical: no chunk was needed (looked at in blocks; 16 computed)",
            0,
        ),
        (
            _decided((Outcome.UNDEFINED, None), (Outcome.UNDEFINED, None), met=False),
            "It could not be decided: no two candidates can be compared",
            None,
        ),
        (
            _decided((Outcome.UNDEFINED, None), (Outcome.BETTER, 12), met=False),
            "Not all could be decided: 1 of 2 pairs cannot be compared",
            None,
        ),
        (
            _decided((Outcome.OPEN, None), met=False),
            "The text of 40 chunks was not enough to meet the rule",
            None,
        ),
        (_precise(0.02, met=True), "16 of 37 chunks were enough", None),
    ],
)
def test_the_title_says_how_many_chunks_were_needed_or_that_none_would_do(
    stopping: Stopping, title: str, needed: int | None
) -> None:
    finding = stopped(stopping, 16)
    assert finding is not None
    assert finding.title == title
    assert finding.evidence.get("chunks_needed") == needed


def test_a_candidate_without_a_mean_keeps_precision_from_being_reached() -> None:
    finding = stopped(_precise(0.02, None, met=False), 16, ["c1"])
    assert finding is not None
    assert finding.title == "No precision can be reached: 1 candidate without a mean KLD"


def test_the_base_itself_is_known_exactly() -> None:
    zero = Known(candidate="same", low=0.0, high=0.0, relative=0.0)
    stopping = _precise(0.02, met=True)
    finding = stopped(stopping.model_copy(update={"known": (zero, *stopping.known)}), 16)
    assert finding is not None
    assert (
        "Reached: same exactly (its KLD is 0 in every token: it computes what the base computes), c0 2 %"
        in finding.text
    )
