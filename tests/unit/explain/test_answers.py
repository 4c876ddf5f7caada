"""The rules that answer the five questions: each fires on its evidence, and on nothing less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.explain.models import BF16, folder, gguf, normal, unknown

from bitloss.divergence.factorial import Cells, attribute
from bitloss.explain.audit import audit
from bitloss.explain.differences import imatrix_route, not_crossed, ties, why_different
from bitloss.explain.findings import findings, pair_not_told
from bitloss.explain.losses import cast_losses, not_counted
from bitloss.explain.questions import QUESTIONS, answers
from bitloss.explain.routes import Twin, route_costs, routes_only, twin_verdicts
from bitloss.explain.sameness import identical_tensors, none_identical, why_identical
from bitloss.explain.sensitive import most_sensitive
from bitloss.records import (
    Attribution,
    Audit,
    Blocks,
    Confidence,
    Cost,
    Cross,
    CrossedTensor,
    Finding,
    ImatrixHalves,
    ImatrixPair,
    KeyDifference,
    Likeness,
    Raised,
    Results,
    Sensitivity,
    Source,
    Verdict,
)
from bitloss.report.card import render_card
from bitloss.report.tables import founding_table

CHUNK = np.repeat(np.arange(12), 20)


def _audit(tmp_path: Path, **tensors: Any) -> Audit:
    return audit(folder(tmp_path / "model", tensors))


def _with(values: list[float], dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    data = normal(4, 256).copy()
    data.reshape(-1)[: len(values)] = values
    return data.astype(dtype)


# ------------------------------------------------------------------------------------------------ question 2


def test_what_loses_nothing_is_lossless(tmp_path: Path) -> None:
    found = cast_losses(_audit(tmp_path, w=normal(4, 256, dtype=BF16)), "BF16", ("f32", "f16"))
    assert [f.id for f in found] == ["cast-to-f16"]
    assert found[0].title == "BF16 to F16 is lossless"
    assert "All 1,024 weights of matrices are 0 or inside" in found[0].text
    assert "every weight comes back from F16 as it was" in found[0].text
    assert "Of 32 Q8_0 blocks none would come out different" in found[0].text
    assert found[0].confidence is Confidence.PROVEN
    assert found[0].question == 2


def test_what_was_not_counted_or_is_not_finite_stands_in_the_title(tmp_path: Path) -> None:
    """ "Lossless" is said of the finite values that were counted, and of no others."""
    values = normal(4, 256)
    values[0, :3] = np.nan, np.inf, -np.inf
    found = audit(
        unknown(tmp_path / "m.gguf", {"odd": normal(2, 32), "w": values, "z": np.zeros((2, 32), "f4")})
    )
    (finding,) = cast_losses(found, "F32", ("f32", "f16"))
    assert finding.title == (
        "F32 to F16 is lossless, but for 1 NaN, 1 +infinity, 1 -infinity and tensors that were not counted"
    )
    assert "All finite ones of 1,088 weights of matrices are 0 or inside" in finding.text
    assert "every finite weight comes back from F16 as it was" in finding.text
    assert (
        "Not finite already: 1 NaN, 1 +infinity, 1 -infinity. What is not finite lies in w." in finding.text
    )
    assert "1 tensor is zero throughout: z." in finding.text
    assert "Not counted, so not in these figures: odd." in finding.text
    opaque = audit(unknown(tmp_path / "o.gguf", {"odd": normal(2, 32), "n": normal(8)}))
    assert cast_losses(opaque, "F32", ("f32", "f16")) == []
    said = not_counted(opaque, ("f32", "f16"))
    assert said is not None
    assert said.text == "No matrix of the model is of a type whose values are counted: odd."


def test_types_that_take_a_matrix_are_counted_without_and_that_is_said(tmp_path: Path) -> None:
    found = audit(gguf(tmp_path / "m.gguf", {"w": normal(4, 256)}), formats=("Q8_0", "Q4_K"))
    (finding,) = cast_losses(found, "F32", ("f32", "f16"))
    assert (
        "Of 4 Q4_K blocks none would come out different by way of F16 (without an importance matrix)."
        in finding.text
    )
    assert "Of 32 Q8_0 blocks none would come out different by way of F16." in finding.text


def test_a_weight_of_70000_overflows(tmp_path: Path) -> None:
    (found,) = cast_losses(_audit(tmp_path, w=_with([70000.0])), "F32", ("f32", "f16"))
    assert found.title == "F16 cannot hold 1 weight: the largest is 70000"
    assert "1 comes back from F16 different, 1 of them infinite" in found.text
    assert (
        "Of 32 Q8_0 blocks 1 would come out different by way of F16, 1 because it holds an overflow"
        in found.text
    )
    assert "Too large are values of w." in found.text
    assert found.evidence["overflowed"] == 1
    assert found.evidence["above"] == 1


def test_lost_in_f16_and_invisible_to_q8_0(tmp_path: Path) -> None:
    (found,) = cast_losses(_audit(tmp_path, w=_with([1e-8, 1e-7])), "F32", ("f32", "f16"))
    assert found.title.startswith("F32 to F16 is lossless except 2 values (largest error ")
    assert "2 come back from F16 different, 1 of them as 0" in found.text
    assert "Of 32 Q8_0 blocks none would come out different" in found.text
    assert found.evidence["zeroed"] == 1
    assert found.evidence["blocks_changed"] == {"Q8_0": 0}


def test_zeros_and_a_bf16_value_between_two_subnormals(tmp_path: Path) -> None:
    between = 1.5 * 2.0**-24  # exact in BF16, halfway between two values of F16
    tensors = {"zero": np.zeros((4, 256), BF16), "w": _with([between], BF16)}
    (found,) = cast_losses(_audit(tmp_path, **tensors), "BF16", ("f32", "f16"))
    assert found.title == "BF16 to F16 is lossless except 1 value (largest error 2.98e-08)"
    assert found.evidence["zeros"] == 1024


def test_bf16_is_told_where_it_was_a_route_for_other_weights(tmp_path: Path) -> None:
    counted = _audit(tmp_path, w=_with([1.001]))
    assert [f.id for f in cast_losses(counted, "F32", ("f32", "bf16"))] == ["cast-to-f16", "cast-to-bf16"]
    assert [f.id for f in cast_losses(counted, "F32", ("f32", "f16"))] == ["cast-to-f16"]
    assert [f.id for f in cast_losses(counted, "BF16", ("f32", "bf16"))] == ["cast-to-f16"]


def test_nothing_counted_is_said_or_silent(tmp_path: Path) -> None:
    assert cast_losses(None, "BF16", ("f32",)) == []
    said = not_counted(None, ("f32", "f16"))
    assert said is not None
    assert said.question == 2
    assert not_counted(None, ()) is None
    assert not_counted(_audit(tmp_path, w=normal(4, 256)), ("f32",)) is None


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
    counted = _audit(tmp_path, w=_with([1e-8]))
    found = why_identical(pair, counted, None)
    assert found is not None
    assert "Rounding to F16 changes 1 of 1,024 weights, and 0 of 32 Q8_0 blocks" in found.text
    assert "What F16 loses, a block of this type does not see." in found.text
    crossed = why_identical(pair, None, _cross(_attribution("Q8_0", Blocks.model_validate(NONE))))
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


# ------------------------------------------------------------------------------------------------ question 3

NONE = dict.fromkeys(Blocks.model_fields, 0) | {"total": 100}


def _attribution(kind: str, blocks: Blocks, cells: Cells | None = None) -> Attribution:
    if cells is None:
        a, b = np.random.default_rng(0).exponential(1.0, (2, len(CHUNK)))
        cells = Cells(a, a, b, b)
    tensors: tuple[CrossedTensor, ...] = ()
    if blocks.whole or blocks.undone:
        tensor = CrossedTensor(
            name="blk.0.ffn_up.weight", type="Q4_K", blocks=blocks, first=(3, 40), first_weights=(3,)
        )
        tensors = (tensor,)
    return Attribution(
        type=kind,
        a="f32",
        b="f16",
        file_a=f"{kind}/f32",
        file_b=f"{kind}/f16",
        weights_of_b=f"{kind}/f16+f32",
        imatrix_of_b=f"{kind}/f32+f16",
        blocks=blocks,
        tensors=tensors,
        kld=attribute(cells, CHUNK),
    )


def _cross(*attributions: Attribution) -> Cross:
    return Cross(attributions=attributions, imatrices=(), halves=())


def _blocks(**counts: int) -> Blocks:
    return Blocks.model_validate(NONE | counts | {"whole": sum(counts.get(k, 0) for k in PARTS)})


PARTS = ("weights", "imatrix", "both")


@pytest.mark.parametrize(
    ("blocks", "title", "says"),
    [
        (
            _blocks(imatrix=7),
            "differ through the importance matrix alone",
            "with that of f16 they give the same bytes",
        ),
        (
            _blocks(weights=7, weights_with_a=7, weights_with_b=7),
            "differ through the weights alone",
            "with that of f32 they differ in 7 blocks (Q4_K_M/f32 and Q4_K_M/f16+f32)",
        ),
        (
            _blocks(imatrix=239, both=1, weights_with_b=1, total=1000),
            "240 blocks: 99.6 % through the importance matrix, 0.4 % through both",
            "with that of f16 they differ in 1 block (Q4_K_M/f32+f16 and Q4_K_M/f16). Changed by the weights: "
            "blk.0.ffn_up.weight block 3.",
        ),
        (
            _blocks(weights=2, imatrix=5, both=3, undone=4),
            "10 blocks: 20.0 % through the weights, 50.0 % through the importance matrix, 30.0 % through both",
            "4 more change with one alone",
        ),
    ],
)
def test_why_different_says_through_what(blocks: Blocks, title: str, says: str) -> None:
    found = why_different(_attribution("Q4_K_M", blocks))
    assert found is not None
    assert found.title.endswith(title)
    assert says in found.text
    assert f"{blocks.whole} of {blocks.total:,} blocks differ" in found.text
    assert "blk.0.ffn_up.weight" in found.text
    assert "block 3, 40" in found.text
    shares = found.evidence["shares_of_blocks"]
    assert isinstance(shares, dict)
    assert sum(float(str(share)) for share in shares.values()) == pytest.approx(1.0)


def test_values_without_blocks_are_told_apart_from_blocks() -> None:
    """Files of F16 differ in values; of quantized files some tensors may be floats."""
    none, values = Blocks.model_validate(NONE), _blocks(weights=2, weights_with_a=2, weights_with_b=2)
    floats = CrossedTensor(name="output.weight", type="F16", blocks=values, first=(5,), first_weights=(5,))
    plain = _attribution("F16", none).model_copy(update={"values": values, "tensors": (floats,)})
    found = why_different(plain)
    assert found is not None
    assert found.title == "F16/f32 and F16/f16 differ through the weights alone"
    assert "2 of 100 values differ (2.000 %), in 1 tensor (in output.weight 2 (value 5))" in found.text
    assert "with that of f32 they differ in 2 values" in found.text
    assert "block" not in found.text
    assert found.evidence["shares_of_values"] == {"weights": 1.0, "imatrix": 0.0, "both": 0.0}
    mixed = _attribution("Q4_K_M", _blocks(imatrix=7))
    mixed = mixed.model_copy(update={"values": values, "tensors": (*mixed.tensors, floats)})
    found = why_different(mixed)
    assert found is not None
    assert "alone" not in found.title
    assert "7 of 100 blocks differ" in found.text
    assert "2 of 100 values differ" in found.text
    assert "they differ in 2 values (Q4_K_M/f32 and Q4_K_M/f16+f32)" in found.text


def test_why_different_claims_shares_only_where_the_whole_is_told() -> None:
    base, one, two = np.random.default_rng(5).exponential(1.0, (3, len(CHUNK)))
    tie = why_different(_attribution("Q4_K_M", _blocks(imatrix=7), Cells(one, one, two, two)))
    assert tie is not None
    assert "cannot be told from 0 (p = " in tie.text
    assert "Shares:" not in tie.text
    assert (
        "Of the token-by-token difference: weights 0.0 ± 0.0 %, importance matrix 100.0 ± 0.0 %" in tie.text
    )
    shifted = why_different(
        _attribution("Q4_K_M", _blocks(imatrix=7), Cells(base, base, base + 1 + one, base + 1 + one))
    )
    assert shifted is not None
    assert "Shares: weights 0.0" in shifted.text
    assert "(the whole is not 0 by a test of its own, p = " in shifted.text
    assert "-0.0 " not in shifted.text
    attributed = _attribution("Q4_K_M", _blocks(imatrix=7))
    few = attributed.model_copy(update={"kld": attribute(Cells(one, one, two, two), CHUNK % 3)})
    said = why_different(few)
    assert said is not None
    assert "Too few chunks to test it" in said.text
    assert why_different(_attribution("Q8_0", Blocks.model_validate(NONE))) is None


def test_not_crossed_says_so_and_a_cross_silences_it(sample_results: Results) -> None:
    candidates = sample_results.candidates
    found = not_crossed(candidates, None)
    assert found is not None
    assert found.evidence["pairs"] == [["Q4_K_M/f32", "Q4_K_M/f16"]]
    assert "--cross" in found.text
    assert not_crossed(candidates, _cross()) is None
    one_matrix = [c.model_copy(update={"imatrix_from": "f32"}) for c in candidates]
    assert not_crossed(one_matrix, None) is None
    unknown = [c.model_copy(update={"weights_from": None}) for c in candidates]
    assert not_crossed(unknown, None) is None


def test_ties_are_named_and_equal_tensors_are_none(sample_results: Results) -> None:
    found = ties(sample_results.comparisons)
    assert found is not None
    assert found.title == "1 of 2 pairs of different files is a tie by mean KLD"
    assert found.evidence["ties"] == [["Q4_K_M/f32", "Q4_K_M/f16"]]
    assert ties([c for c in sample_results.comparisons if c.verdict is not Verdict.TIE]) is None


def _likeness(spread: float | None) -> Likeness:
    return Likeness(
        columns=10 if spread is not None else 0,
        left_out=0,
        correlation_lowest=None,
        correlation_lowest_at=None,
        correlation_median=None,
        largest_ratio=None if spread is None else 1.0 + spread,
        largest_ratio_at=None if spread is None else "blk.0.w",
        spread=spread,
    )


def test_the_route_beside_the_noise_of_the_text() -> None:
    halves = [ImatrixHalves(source=s, likeness=_likeness(0.2)) for s in ("f32", "f16")]

    def told(spread: float | None, known: list[ImatrixHalves]) -> Finding | None:
        return imatrix_route(ImatrixPair(a="f32", b="f16", likeness=_likeness(spread)), known)

    less, more, equal, unknown = told(0.001, halves), told(0.5, halves), told(0.0, halves), told(0.1, [])
    assert less is not None
    assert less.title.startswith("The route changes the importance matrix less than")
    assert less.title.endswith("(judged by one pair of halves)")
    assert less.evidence["text_noise"] == pytest.approx(0.2 / 2**0.5)
    assert less.evidence["route_over_text"] == pytest.approx(0.001 / (0.2 / 2**0.5))
    assert more is not None
    assert "matrix more than" in more.title
    assert equal is not None
    assert equal.title == "The importance matrices of f32 and f16 are equal"
    assert unknown is not None
    assert "is not known: no halves were kept" in unknown.text
    assert "more than" not in unknown.title
    assert told(None, halves) is None
    why = told(0.1, [ImatrixHalves(source="f32", likeness=None, reason="too short")])
    assert why is not None
    assert "is not known: too short" in why.text


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


# ------------------------------------------------------------------------------------------------ all of it


def test_every_question_is_answered_and_grouped(tmp_path: Path, sample_results: Results) -> None:
    full = sample_results.model_copy(
        update={
            "audit": _audit(tmp_path, w=normal(4, 256, dtype=BF16)),
            "cross": Cross(
                attributions=(_attribution("Q4_K_M", _blocks(imatrix=7)),),
                imatrices=(ImatrixPair(a="f32", b="f16", likeness=_likeness(0.1)),),
                halves=(ImatrixHalves(source="f32", likeness=_likeness(0.2)),),
            ),
        }
    )
    found = findings(full)
    grouped = answers(found)
    assert [each.number for each in grouped] == [1, 2, 3, 4, 5]
    assert [each.question for each in grouped] == list(QUESTIONS.values())
    assert {"why-identical", "cast-to-f16", "why-different", "imatrix-route", "route-costs"} <= {
        f.id for f in found
    }
    assert "not-crossed" not in {f.id for f in found}
    assert answers(()) == ()
    plain = Finding(id="x", title="t", text="t", evidence={"a": 1}, confidence=Confidence.PROVEN)
    assert [each.number for each in answers((plain, *found))] == [1, 2, 3, 4, 5, None]


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
