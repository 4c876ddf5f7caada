"""Cautions fire on their evidence and on nothing less."""

from __future__ import annotations

from typing import Any

import pytest

from bitloss.explain.cautions import (
    TELLING_SHARE,
    base_of_something_else,
    calibrated_on_the_measured_text,
    importance_left_open,
    not_finite,
    quantized_base,
)
from bitloss.explain.findings import findings
from bitloss.records import Figure, Finding, Importance, Overlap, Results, Source, TextPart


def _overlap(shared: int, windows: int = 10_000) -> Overlap:
    return Overlap(window=32, windows=windows, shared=shared, share=shared / windows)


def _with(results: Results, **changes: Any) -> Results:
    return results.model_copy(update={"text": results.text.model_copy(update=changes)})


def _part(name: str, sha256: str, shared: int) -> TextPart:
    return TextPart(
        name=name, sha256=sha256, tokens_sha256=sha256, chunks=2, scored_tokens=510, overlap=_overlap(shared)
    )


def test_the_same_text_is_said(sample_results: Results) -> None:
    calibration = sample_results.calibration
    assert calibration is not None
    same = _with(sample_results, sha256=calibration.sha256)
    finding = calibrated_on_the_measured_text(same)
    assert finding is not None
    assert finding.evidence["sha256"] == calibration.sha256
    assert "same content" in finding.text
    assert finding in findings(same)
    plain = tuple(each.model_copy(update={"imatrix_from": None}) for each in same.candidates)
    for silent in (
        sample_results,
        same.model_copy(update={"calibration": None}),
        same.model_copy(update={"candidates": plain}),
    ):
        assert calibrated_on_the_measured_text(silent) is None


def test_a_shared_passage_is_said_and_a_stray_window_is_not(sample_results: Results) -> None:
    enough = round(10_000 * TELLING_SHARE)
    finding = calibrated_on_the_measured_text(_with(sample_results, overlap=_overlap(enough)))
    assert finding is not None
    assert finding.evidence["shared"] == enough
    assert "0.100 %" in finding.title
    assert f"({enough} of 10000 in all)" in finding.text
    for shared in (0, enough - 1):
        assert calibrated_on_the_measured_text(_with(sample_results, overlap=_overlap(shared))) is None
    assert calibrated_on_the_measured_text(_with(sample_results, overlap=_overlap(0, windows=1))) is None


def test_one_of_several_texts_is_named(sample_results: Results) -> None:
    calibration = sample_results.calibration
    assert calibration is not None
    pooled = _with(sample_results, overlap=_overlap(30, windows=100_000))
    parts = (_part("a.txt", "a" * 64, 0), _part("b.txt", "b" * 64, 30))
    finding = calibrated_on_the_measured_text(pooled.model_copy(update={"texts": parts}))
    assert finding is not None
    assert "0.300 % of b.txt" in finding.text
    assert "a.txt" not in finding.text
    whole = (_part("a.txt", "a" * 64, 0), _part("b.txt", calibration.sha256, 0))
    finding = calibrated_on_the_measured_text(pooled.model_copy(update={"texts": whole}))
    assert finding is not None
    assert "b.txt have the same content" in finding.text


def test_what_was_forced_is_said(sample_results: Results) -> None:
    assert base_of_something_else(sample_results.base) is None
    forced = sample_results.base.model_copy(update={"forced": ("n_ctx: base 512, asked for 256",)})
    finding = base_of_something_else(forced)
    assert finding is not None
    assert "n_ctx: base 512, asked for 256" in finding.text
    assert finding in findings(sample_results.model_copy(update={"base": forced}))


@pytest.mark.parametrize("count", [0, 3])
def test_logits_that_are_not_finite_are_counted_and_named(sample_results: Results, count: int) -> None:
    first, *others = sample_results.candidates
    metrics = first.metrics | {"nonfinite_tokens": Figure(value=count)}
    found = not_finite((first.model_copy(update={"metrics": metrics}), *others))
    if not count:
        assert found is None
        return
    assert found is not None
    assert found.evidence == {"tokens": {first.name: 3}, "base": 0}
    assert f"{first.name} (3 tokens)" in found.text
    assert "base" not in found.title
    metrics |= {"nonfinite_base": Figure(value=1)}
    of_base = not_finite((first.model_copy(update={"metrics": metrics}), *others))
    assert of_base is not None
    assert of_base.title == "Logits of the base are NaN or infinite"
    assert of_base.text.startswith("Of the base itself in 1 token:")


def test_what_the_matrix_leaves_open_is_said_with_the_rule(sample_results: Results) -> None:
    first, *others = sample_results.candidates

    def told(importance: Importance | None) -> Finding | None:
        return importance_left_open([first.model_copy(update={"importance": importance}), *others])

    assert told(None) is None
    assert told(Importance(missing=("token_embd.weight", "output.weight"))) is None  # as always
    lacking = told(Importance(missing=("token_embd.weight", *(f"blk.{n}.ffn_up.weight" for n in range(7)))))
    assert lacking is not None
    assert lacking.text.startswith("Not in the matrix, encoded as without one: blk.0.ffn_up.weight, ")
    assert "blk.4.ffn_up.weight and 2 more." in lacking.text
    assert lacking.evidence["candidates"] == [first.name]
    assert len(lacking.evidence["missing"]) == 7  # type: ignore[arg-type]
    found = told(
        Importance(
            unused_experts={"blk.0.ffn_up_exps.weight": (3, 5)},
            zero_weights={
                "blk.0.ffn_down_exps.weight": (1,),
                "blk.1.attn_q.weight": (0,),
                "blk.2.attn_q.weight": (0,),
            },
            lost=("blk.0.ffn_down_exps.weight", "blk.1.attn_q.weight"),
        )
    )
    assert found is not None
    assert found.title == "Importance of 0 emptied tensors"
    assert "no token reached, every column counts 1: blk.0.ffn_up_exps.weight[3, 5]." in found.text
    assert "broken there: blk.0.ffn_down_exps.weight[1], blk.1.attn_q.weight." in found.text
    assert "take no harm from: blk.2.attn_q.weight." in found.text
    assert found.evidence["lost"] == ["blk.0.ffn_down_exps.weight[1]", "blk.1.attn_q.weight"]
    assert importance_left_open(()) is None


def test_files_of_one_matrix_are_told_of_together(sample_results: Results) -> None:
    open_experts = Importance(unused_experts={"blk.0.ffn_up_exps.weight": (1,)})
    both = [c.model_copy(update={"importance": open_experts}) for c in sample_results.candidates[:2]]
    everything = (*both, *sample_results.candidates[2:])
    changed = sample_results.model_copy(update={"candidates": everything})
    (found,) = (each for each in findings(changed) if each.id == "importance-left-open")
    assert found.evidence["candidates"] == [each.name for each in both]
    assert found.text.count("blk.0.ffn_up_exps.weight[1]") == 1


def test_a_quantized_base_is_said_where_it_was_not_made_here(sample_results: Results) -> None:
    def of(dtype: str, **more: Any) -> Results:
        model = sample_results.model.model_copy(update={"dtype": dtype})
        return sample_results.model_copy(update={"model": model, **more})

    finding = quantized_base(of("Q8_0"))
    assert finding is not None
    assert finding.title == "The base is quantized itself (Q8_0)"
    assert "Divergences are from this file" in finding.text
    assert finding in findings(of("Q8_0"))
    assert [quantized_base(of(kind)) for kind in ("F32", "F16", "BF16", "unknown")] == [None] * 4
    made = Source(name="f16", file="x-f16.gguf", bytes=1, sha256="0" * 64)
    assert quantized_base(of("F8_E4M3", sources=(made,))) is None
