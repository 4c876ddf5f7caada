"""The rules on what is identical, which route to take and where bits matter: each fires on its evidence alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.explain.answer_cases import NONE, attribution_of, audited, cross_of, with_values

from bitloss.explain.findings import pair_not_told
from bitloss.explain.routes import Twin, route_costs, routes_only, twin_verdicts
from bitloss.explain.sameness import identical_tensors, none_identical, why_identical
from bitloss.explain.sensitive import most_sensitive
from bitloss.records import (
    Blocks,
    Cost,
    KeyDifference,
    Raised,
    Results,
    Sensitivity,
    Source,
    Verdict,
)
from bitloss.report.card import render_card
from bitloss.report.tables import founding_table

# ------------------------------------------------------------------------------------------------ question 1


def test_equal_tensors_with_other_metadata_name_the_keys(sample_results: Results) -> None:
    first = sample_results.candidate("Q8_0/f32")
    keys = (KeyDifference(key="quantize.imatrix.file", bytes=90, twin_bytes=122),)
    second = sample_results.candidate("Q8_0/f16").model_copy(update={"keys_differ": keys})
    found = identical_tensors(first, second)
    assert found is not None
    assert "Metadata keys that differ: quantize.imatrix.file (122 and 90 bytes)." in found.text
    assert found.evidence["metadata"] == {"quantize.imatrix.file": [122, 90]}
    assert found.rows == ("Q8_0/f32", "Q8_0/f16", "#files")
    short = keys[0].model_copy(update={"value": "b.gguf", "twin_value": "a\n.gguf"})
    lone = keys[0].model_copy(update={"key": "x", "twin_value": "1"})
    both = identical_tensors(first, second.model_copy(update={"keys_differ": (short, lone)}))
    assert both is not None
    assert "quantize.imatrix.file (a\\x0a.gguf and b.gguf), x (1 and nothing)." in both.text
    none = identical_tensors(first, second.model_copy(update={"keys_differ": ()}))
    assert none is not None
    assert "No metadata key differs: it is the layout alone." in none.text
    unknown = identical_tensors(first, second.model_copy(update={"keys_differ": None}))
    assert unknown is not None
    assert "Metadata keys" not in unknown.text


def test_why_identical_rests_on_counted_blocks_or_on_the_cross(
    tmp_path: Path, sample_results: Results
) -> None:
    pair = (sample_results.candidate("Q8_0/f32"), sample_results.candidate("Q8_0/f16"))
    counted = audited(tmp_path, w=with_values([1e-8]))
    found = why_identical(pair, counted, None)
    assert found is not None
    assert "Rounding to F16 changes 1 of 1,024 weights, and 0 of 32 Q8_0 blocks" in found.text
    assert "What F16 loses, a block of this type does not see." in found.text
    crossed = why_identical(pair, None, cross_of(attribution_of("Q8_0", Blocks.model_validate(NONE))))
    assert crossed is not None
    assert "neither the weights' route nor the importance matrix's makes a difference to Q8_0" in crossed.text
    assert "#cross" in crossed.rows
    assert why_identical(pair, None, None) is None
    assert why_identical((pair[0], sample_results.candidate("Q4_K_M/f32")), counted, None) is None
    assert why_identical((pair[0], pair[0]), counted, None) is None


def test_none_identical_is_said_where_routes_were_compared(sample_results: Results) -> None:
    assert none_identical(sample_results) is None
    q4 = tuple(c for c in sample_results.candidates if c.type == "Q4_K_M")
    found = none_identical(sample_results.model_copy(update={"candidates": q4}))
    assert found is not None
    assert found.question == 1
    assert found.title == "No two files of this run hold the same weights"
    assert none_identical(sample_results.model_copy(update={"candidates": q4[:1]})) is None
    crossed = q4[0].model_copy(
        update={"name": "Q4_K_M/f32+f16", "imatrix_from": "f16", "identical_to": q4[0].name}
    )
    found = none_identical(sample_results.model_copy(update={"candidates": (*q4, crossed)}))
    assert found is not None  # whole files differ, whatever a crossed one repeats
    assert found.evidence["files"] == 2
    assert (
        found.title == "No type comes out the same by two routes"
    )  # the crossed file is the same as another
    assert found.text.endswith(" Files made only to be crossed (1) are told of with the cross.")


# ------------------------------------------------------------------------------------------------ question 4

SIZES = (
    Source(name="f32", file="a-f32.gguf", bytes=4000, sha256="a" * 64),
    Source(name="f16", file="a-f16.gguf", bytes=2000, sha256="b" * 64),
)


def _costs(f32: float, f16: float) -> list[Cost]:
    return [
        Cost(step=f"imatrix {route}", kind="imatrix", route=route, seconds=seconds, bytes=1, reused=False)
        for route, seconds in (("f32", f32), ("f16", f16))
    ]


def test_which_route_to_take() -> None:
    pair = frozenset({"f32", "f16"})
    same = [Twin(pair, Verdict.IDENTICAL, "Q8_0"), Twin(pair, Verdict.TIE, "Q4_K_M")]
    found = route_costs(_costs(100, 62), same, base="f32", sources=SIZES)
    assert found is not None
    assert (
        found.title
        == "f16 instead of f32: the same tensors (Q8_0), a tie (Q4_K_M), half the disk for the source, "
        "38 % less time in this one run"
    )
    assert found.text.endswith("Nothing measured here speaks for f32: take f16.")
    slower = route_costs(_costs(100, 150), same, base="f32", sources=SIZES)
    assert slower is not None
    assert "50 % more time" in slower.title
    assert "f16 takes less disk, f32 less time" in slower.text
    told = route_costs(
        _costs(100, 62), [*same, Twin(pair, Verdict.BETTER, "Q4_K_M")], base="f32", sources=SIZES
    )
    assert told is not None
    assert "a difference (Q4_K_M)" in told.title
    assert "what it is worth is yours to say" in told.text
    assert "take f16" not in told.text
    unknown = route_costs(_costs(100, 62), [], base="f32", sources=SIZES)
    assert unknown is not None
    assert "were not compared, so nothing is recommended" in unknown.text


@pytest.mark.parametrize(("f32", "f16"), [(24.8, 28.6), (28.6, 24.8), (100, 124)])
def test_times_that_one_run_cannot_tell_apart(f32: float, f16: float) -> None:
    """One wall clock, one run: a route is not recommended, nor advised against, for a few seconds."""
    same = [Twin(frozenset({"f32", "f16"}), Verdict.TIE, "Q4_K_M")]
    found = route_costs(_costs(f32, f16), same, base="f32", sources=SIZES)
    assert found is not None
    assert found.title.endswith("half the disk for the source, about the same time")
    assert "a difference below 25 % is called about the same time" in found.text
    assert found.text.endswith("Nothing measured here speaks for f32: take f16.")
    no_sizes = route_costs(_costs(f32, f16), same, base="f32")
    assert no_sizes is not None
    assert no_sizes.text.endswith(" apart: take either.")


def test_times_of_a_few_seconds_are_not_compared() -> None:
    same = [Twin(frozenset({"f32", "f16"}), Verdict.TIE, "Q4_K_M")]
    found = route_costs(_costs(0.95, 3.1), same, base="f32", sources=SIZES)
    assert found is not None
    assert found.title == "f16 instead of f32: a tie (Q4_K_M), half the disk for the source"
    assert found.text.endswith("Nothing measured here speaks for f32: take f16.")
    assert "times below 5.0 s are not compared" in found.text


def test_every_route_is_told_against_the_dearest() -> None:
    third = Cost(step="imatrix bf16", kind="imatrix", route="bf16", seconds=99, bytes=1, reused=False)
    sizes = (*SIZES, Source(name="bf16", file="a-bf16.gguf", bytes=2000, sha256="c" * 64))
    f16 = Twin(frozenset({"f32", "f16"}), Verdict.TIE, "Q4_K_M")
    bf16 = Twin(frozenset({"f32", "bf16"}), Verdict.BETTER, "Q4_K_M")
    between = Twin(frozenset({"f16", "bf16"}), Verdict.BETTER, "Q4_K_M")
    costs = [*_costs(100, 62), third]
    found = route_costs(costs, [f16, bf16, between], base="f32", sources=sizes)
    assert found is not None
    assert found.title == (
        "f16 instead of f32: a tie (Q4_K_M), half the disk for the source, 38 % less time in this one run; "
        "bf16 instead of f32: a difference (Q4_K_M), half the disk for the source, about the same time"
    )
    assert found.text.endswith(
        "Nothing measured here speaks for f32: take f16. Between f32 and bf16 there is a difference (Q4_K_M): what it "
        "is worth is yours to say."
    )
    alike = route_costs(
        [*_costs(100, 98), third], [f16, bf16._replace(verdict=Verdict.TIE)], base="f32", sources=sizes
    )
    assert alike is not None  # what is the same is said once
    assert alike.title == (
        "f16 or bf16 instead of f32: a tie (Q4_K_M), half the disk for the source, about the same time"
    )
    assert alike.text.endswith("Nothing measured here speaks for f32: take f16 or bf16.")


def test_what_was_not_tested_recommends_nothing() -> None:
    """A text too short to test: that the other type is the same says nothing of this one."""
    pair = frozenset({"f32", "f16"})
    twins = [Twin(pair, Verdict.IDENTICAL, "Q8_0"), Twin(pair, None, "Q4_K_M"), Twin(pair, None, "Q4_K_M")]
    found = route_costs(_costs(100, 62), twins, base="f32", sources=SIZES)
    assert found is not None
    assert "the same tensors (Q8_0), not decided (Q4_K_M)" in found.title
    assert "show a difference: 0 of 3, and 2 could not be tested." in found.text
    assert found.text.endswith(
        "Whether the files of f32 and f16 differ could not be tested for Q4_K_M, so nothing is recommended."
    )
    partly = route_costs(_costs(100, 62), [*twins, Twin(pair, Verdict.TIE, "Q4_K_M")], base="f32")
    assert partly is not None  # one metric was tested, and is a tie
    assert "a tie (Q4_K_M)" in partly.title


def test_equal_scores_are_not_equal_tensors(sample_results: Results) -> None:
    """Tensors that differ where this text does not look score alike on every token."""
    a, b = (sample_results.candidate(name) for name in ("Q4_K_M/f32", "Q4_K_M/f16"))
    same = [
        c.model_copy(update={"verdict": Verdict.IDENTICAL, "p_holm": None, "p_value": None, "ci95": None})
        for c in sample_results.comparisons
        if (c.a, c.b) == (a.name, b.name)
    ]
    assert same
    (twin, *_) = twin_verdicts({a.name: a, b.name: b}, same)
    assert twin.verdict is Verdict.TIE
    found = pair_not_told(a, b, same, 100)
    assert found is not None
    assert found.title == "Q4_K_M/f32 and Q4_K_M/f16: the same on every token"
    assert "Their tensors differ. On these 100 tokens they scored the same" in found.text
    reason = "no clustered standard error: 1 chunk, at least 10 needed"
    short = [c.model_copy(update={"verdict": None, "reason": reason}) for c in same]
    found = pair_not_told(a, b, short, 100)
    assert found is not None
    assert found.title.endswith("not decided")
    assert (
        f"was not tested: {reason}. Whether what their figures differ by is more than chance is not known."
        in found.text
    )
    assert pair_not_told(a, a, short, 100) is None
    assert (
        pair_not_told(a, b, [c for c in sample_results.comparisons if c.a == a.name and c.b == b.name], 9)
        is None
    )


def test_files_made_to_be_crossed_are_no_cost_of_a_route() -> None:
    crossed = Cost(
        step="quantize Q8_0/f32+f16", kind="quantize", route=None, seconds=9, bytes=9, reused=False
    )
    found = route_costs([*_costs(2, 1), crossed], [], base="f32")
    assert found is not None
    assert "f32+f16" not in found.text


# ------------------------------------------------------------------------------------------ where bits matter


def _raised(group: str, gain: float | None, verdict: Verdict | None) -> Raised:
    return Raised(
        group=group,
        kind="attention",
        candidate=f"m+{group}",
        tensors=1,
        bits_per_weight_added=0.5,
        gain=gain,
        se=0.001,
        verdict=verdict,
        gain_per_bit=None if gain is None else gain / 0.5,
    )


def _sensitivity(*groups: Raised) -> Sensitivity:
    return Sensitivity(
        source="m.gguf", type="Q4_K_M", plain="m", imatrix=None, per_layer=False, groups=groups
    )


def test_the_most_sensitive_group() -> None:
    found = most_sensitive(
        _sensitivity(_raised("output", 0.02, Verdict.BETTER), _raised("attention", 0.01, Verdict.TIE))
    )
    assert found is not None
    assert found.title == "Q4_K_M gains most where output is raised"
    assert "For a bit spent, output gains most (0.040000" in found.text
    assert found.evidence["beyond_chance"] == ["output"]
    nothing = most_sensitive(_sensitivity(_raised("output", 0.02, Verdict.TIE)))
    assert nothing is not None
    assert nothing.title == "No group of Q4_K_M gains anything that this text can show"
    assert "For a bit spent" not in nothing.text
    reason = "no clustered standard error: 3 chunks, at least 10 needed"
    short = most_sensitive(
        _sensitivity(_raised("output", 0.02, None).model_copy(update={"se": None, "reason": reason}))
    )
    assert short is not None  # large or not: it was not tested
    assert short.title == "Which group of Q4_K_M gains beyond chance was not tested"
    assert f"Whether any of this is beyond chance was not tested: {reason}." in short.text
    assert "Beyond chance (" not in short.text
    assert most_sensitive(None) is None
    assert most_sensitive(_sensitivity(_raised("output", None, None))) is None


def test_crossed_files_are_not_for_publishing(sample_results: Results) -> None:
    first, *others = sample_results.candidates
    crossed = first.model_copy(update={"name": "Q4_K_M/f32+f16", "imatrix_from": "f16"})
    compared = sample_results.comparisons[0].model_copy(update={"a": crossed.name})
    full = sample_results.model_copy(
        update={
            "candidates": (first, *others, crossed),
            "comparisons": (*sample_results.comparisons, compared),
        }
    )
    assert routes_only(full) == sample_results
    assert crossed.name not in render_card(full, Path("nowhere"))
    assert founding_table(full).columns[-2] == crossed.name  # measured by itself: it stays in the table
    twin = crossed.model_copy(update={"identical_to": first.name})
    again = full.model_copy(update={"candidates": (first, *others, twin)})
    assert twin.name not in founding_table(again).columns
