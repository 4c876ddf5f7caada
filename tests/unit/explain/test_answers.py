"""The rules that answer the five questions: each fires on its evidence, and on nothing less."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.unit.explain.answer_cases import (
    CHUNK,
    NONE,
    attribution_of,
    audited,
    blocks_of,
    cross_of,
    likeness_of,
    with_values,
)
from tests.unit.explain.models import BF16, gguf, normal, unknown

from bitloss.divergence.factorial import Cells, attribute
from bitloss.explain.audit import audit
from bitloss.explain.differences import imatrix_route, not_crossed, ties, why_different
from bitloss.explain.findings import findings
from bitloss.explain.losses import cast_losses, not_counted
from bitloss.explain.questions import QUESTIONS, answers
from bitloss.records import (
    Blocks,
    Confidence,
    Cross,
    CrossedTensor,
    Finding,
    ImatrixHalves,
    ImatrixPair,
    Results,
    Verdict,
)

# ------------------------------------------------------------------------------------------------ question 2


def test_what_loses_nothing_is_lossless(tmp_path: Path) -> None:
    found = cast_losses(audited(tmp_path, w=normal(4, 256, dtype=BF16)), "BF16", ("f32", "f16"))
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
    (found,) = cast_losses(audited(tmp_path, w=with_values([70000.0])), "F32", ("f32", "f16"))
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
    (found,) = cast_losses(audited(tmp_path, w=with_values([1e-8, 1e-7])), "F32", ("f32", "f16"))
    assert found.title.startswith("F32 to F16 is lossless except 2 values (largest error ")
    assert "2 come back from F16 different, 1 of them as 0" in found.text
    assert "Of 32 Q8_0 blocks none would come out different" in found.text
    assert found.evidence["zeroed"] == 1
    assert found.evidence["blocks_changed"] == {"Q8_0": 0}


def test_zeros_and_a_bf16_value_between_two_subnormals(tmp_path: Path) -> None:
    between = 1.5 * 2.0**-24  # exact in BF16, halfway between two values of F16
    tensors = {"zero": np.zeros((4, 256), BF16), "w": with_values([between], BF16)}
    (found,) = cast_losses(audited(tmp_path, **tensors), "BF16", ("f32", "f16"))
    assert found.title == "BF16 to F16 is lossless except 1 value (largest error 2.98e-08)"
    assert found.evidence["zeros"] == 1024


def test_bf16_is_told_where_it_was_a_route_for_other_weights(tmp_path: Path) -> None:
    counted = audited(tmp_path, w=with_values([1.001]))
    assert [f.id for f in cast_losses(counted, "F32", ("f32", "bf16"))] == ["cast-to-f16", "cast-to-bf16"]
    assert [f.id for f in cast_losses(counted, "F32", ("f32", "f16"))] == ["cast-to-f16"]
    assert [f.id for f in cast_losses(counted, "BF16", ("f32", "bf16"))] == ["cast-to-f16"]


def test_nothing_counted_is_said_or_silent(tmp_path: Path) -> None:
    assert cast_losses(None, "BF16", ("f32",)) == []
    said = not_counted(None, ("f32", "f16"))
    assert said is not None
    assert said.question == 2
    assert not_counted(None, ()) is None
    assert not_counted(audited(tmp_path, w=normal(4, 256)), ("f32",)) is None


# ------------------------------------------------------------------------------------------------ question 3


@pytest.mark.parametrize(
    ("blocks", "title", "says"),
    [
        (
            blocks_of(imatrix=7),
            "differ through the importance matrix alone",
            "with that of f16 they give the same bytes",
        ),
        (
            blocks_of(weights=7, weights_with_a=7, weights_with_b=7),
            "differ through the weights alone",
            "with that of f32 they differ in 7 blocks (Q4_K_M/f32 and Q4_K_M/f16+f32)",
        ),
        (
            blocks_of(imatrix=239, both=1, weights_with_b=1, total=1000),
            "240 blocks: 99.6 % through the importance matrix, 0.4 % through both",
            "with that of f16 they differ in 1 block (Q4_K_M/f32+f16 and Q4_K_M/f16). Changed by the weights: "
            "blk.0.ffn_up.weight block 3.",
        ),
        (
            blocks_of(weights=2, imatrix=5, both=3, undone=4),
            "10 blocks: 20.0 % through the weights, 50.0 % through the importance matrix, 30.0 % through both",
            "4 more change with one alone",
        ),
    ],
)
def test_why_different_says_through_what(blocks: Blocks, title: str, says: str) -> None:
    found = why_different(attribution_of("Q4_K_M", blocks))
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
    none, values = Blocks.model_validate(NONE), blocks_of(weights=2, weights_with_a=2, weights_with_b=2)
    floats = CrossedTensor(name="output.weight", type="F16", blocks=values, first=(5,), first_weights=(5,))
    plain = attribution_of("F16", none).model_copy(update={"values": values, "tensors": (floats,)})
    found = why_different(plain)
    assert found is not None
    assert found.title == "F16/f32 and F16/f16 differ through the weights alone"
    assert "2 of 100 values differ (2.000 %), in 1 tensor (in output.weight 2 (value 5))" in found.text
    assert "with that of f32 they differ in 2 values" in found.text
    assert "block" not in found.text
    assert found.evidence["shares_of_values"] == {"weights": 1.0, "imatrix": 0.0, "both": 0.0}
    mixed = attribution_of("Q4_K_M", blocks_of(imatrix=7))
    mixed = mixed.model_copy(update={"values": values, "tensors": (*mixed.tensors, floats)})
    found = why_different(mixed)
    assert found is not None
    assert "alone" not in found.title
    assert "7 of 100 blocks differ" in found.text
    assert "2 of 100 values differ" in found.text
    assert "they differ in 2 values (Q4_K_M/f32 and Q4_K_M/f16+f32)" in found.text


def test_why_different_claims_shares_only_where_the_whole_is_told() -> None:
    base, one, two = np.random.default_rng(5).exponential(1.0, (3, len(CHUNK)))
    tie = why_different(attribution_of("Q4_K_M", blocks_of(imatrix=7), Cells(one, one, two, two)))
    assert tie is not None
    assert "cannot be told from 0 (p = " in tie.text
    assert "Shares:" not in tie.text
    assert (
        "Of the token-by-token difference: weights 0.0 ± 0.0 %, importance matrix 100.0 ± 0.0 %" in tie.text
    )
    shifted = why_different(
        attribution_of("Q4_K_M", blocks_of(imatrix=7), Cells(base, base, base + 1 + one, base + 1 + one))
    )
    assert shifted is not None
    assert "Shares: weights 0.0" in shifted.text
    assert "(the whole is not 0 by a test of its own, p = " in shifted.text
    assert "-0.0 " not in shifted.text
    attributed = attribution_of("Q4_K_M", blocks_of(imatrix=7))
    few = attributed.model_copy(update={"kld": attribute(Cells(one, one, two, two), CHUNK % 3)})
    said = why_different(few)
    assert said is not None
    assert "Too little text to test it" in said.text
    assert why_different(attribution_of("Q8_0", Blocks.model_validate(NONE))) is None


def test_not_crossed_says_so_and_a_cross_silences_it(sample_results: Results) -> None:
    candidates = sample_results.candidates
    found = not_crossed(candidates, None)
    assert found is not None
    assert found.evidence["pairs"] == [["Q4_K_M/f32", "Q4_K_M/f16"]]
    assert "--cross" in found.text
    assert not_crossed(candidates, cross_of()) is None
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


def test_the_route_beside_the_noise_of_the_text() -> None:
    halves = [ImatrixHalves(source=s, likeness=likeness_of(0.2)) for s in ("f32", "f16")]

    def told(spread: float | None, known: list[ImatrixHalves]) -> Finding | None:
        return imatrix_route(ImatrixPair(a="f32", b="f16", likeness=likeness_of(spread)), known)

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


# ------------------------------------------------------------------------------------------------ all of it


def test_every_question_is_answered_and_grouped(tmp_path: Path, sample_results: Results) -> None:
    full = sample_results.model_copy(
        update={
            "audit": audited(tmp_path, w=normal(4, 256, dtype=BF16)),
            "cross": Cross(
                attributions=(attribution_of("Q4_K_M", blocks_of(imatrix=7)),),
                imatrices=(ImatrixPair(a="f32", b="f16", likeness=likeness_of(0.1)),),
                halves=(ImatrixHalves(source="f32", likeness=likeness_of(0.2)),),
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
