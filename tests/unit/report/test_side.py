"""Runs side by side: only what can be compared, each with its own name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tokens import token_table, write_table

from bitloss.divergence.factorial import Cells, attribute
from bitloss.errors import MismatchError, UsageError
from bitloss.records import Attribution, Blocks, Cross, Results
from bitloss.report.side import Run, labelled, side_by_side
from bitloss.report.write import gather, write_gathered


def test_two_runs_in_one_report(sample_document: dict[str, Any], tmp_path: Path) -> None:
    sample_document["text"] |= {"chunks": 12, "scored_tokens": 12 * 63}
    first = Results.model_validate(sample_document)
    sample_document["llama_cpp"]["commit"] = "ffffff"
    second = Results.model_validate(sample_document)
    runs = []
    for label, results in (("a", first), ("b", second)):
        write_table(token_table(12, 63), tmp_path / label, "q4", results.candidates[0].tensors_sha256)
        runs.append(Run(label, tmp_path / label, results))
    together = side_by_side(runs)
    names = [c.name for c in together.results.candidates]
    assert names == [f"{label}: {c.name}" for label in "ab" for c in first.candidates]
    assert together.results.candidates[7].identical_to == "b: Q8_0/f32"
    assert len(together.results.comparisons) == 6
    assert set(together.files) == {"a: Q4_K_M/f32", "b: Q4_K_M/f32"}
    Results.model_validate_json(together.results.model_dump_json(by_alias=True))
    said = " ".join(together.warnings)
    assert "2 runs side by side (a, b)" in said
    assert "different engines (0c1e570 on CUDA, ffffff on CUDA)" in said
    assert "b: Q4_K_M/f32 has the tensors of a: Q4_K_M/f32." in said
    gathered = gather(together.results, together.files, None)
    page = write_gathered(together.results, tmp_path / "out", gathered, warnings=together.warnings).html
    assert "8 files measured" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("part", "key", "value", "word"),
    [
        ("base", "sha256", "0" * 64, "another base"),
        ("text", "tokens_sha256", "0" * 64, "another text"),
        ("text", "n_ctx", 1024, "another context"),
        ("text", "chunks", 3, "another number of chunks"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused_by_name(
    sample_document: dict[str, Any], tmp_path: Path, part: str, key: str, value: object, word: str
) -> None:
    first = Results.model_validate(sample_document)
    sample_document[part][key] = value
    other = Results.model_validate(sample_document)
    with pytest.raises(MismatchError, match=rf"second: the run has {word}.* than first"):
        side_by_side([Run("first", tmp_path, first), Run("second", Path("second"), other)])


def test_one_run_is_not_two(sample_results: Results, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        side_by_side([Run("a", tmp_path, sample_results)])


def test_labels_tell_folders_apart() -> None:
    assert labelled([Path("/x/a"), Path("/y/b")]) == ["a", "b"]
    assert labelled([Path("/x/a"), Path("/y/a"), Path("/y/b")]) == ["1-a", "2-a", "b"]


def test_what_each_run_crossed_keeps_its_names(sample_document: dict[str, Any], tmp_path: Path) -> None:
    sample_document["text"] |= {"chunks": 12, "scored_tokens": 12 * 63}
    plain = Results.model_validate(sample_document)
    a, b = np.random.default_rng(0).exponential(1.0, (2, 240))
    counts = dict.fromkeys(Blocks.model_fields, 0)
    attribution = Attribution(
        type="Q4_K_M",
        a="f32",
        b="f16",
        file_a="Q4_K_M/f32",
        file_b="Q4_K_M/f16",
        weights_of_b="Q4_K_M/f32",
        imatrix_of_b="Q4_K_M/f16",
        blocks=Blocks.model_validate(counts),
        tensors=(),
        kld=attribute(Cells(a, a, b, b), np.repeat(np.arange(12), 20)),
    )
    crossed = plain.model_copy(update={"cross": Cross(attributions=(attribution,), imatrices=(), halves=())})
    runs = [Run("x", tmp_path, crossed), Run("y", tmp_path, plain)]
    together = side_by_side(runs).results
    assert together.cross is not None
    assert [each.file_b for each in together.cross.attributions] == ["x: Q4_K_M/f16"]
    Results.model_validate_json(together.model_dump_json(by_alias=True))
    assert side_by_side([Run("x", tmp_path, plain), Run("y", tmp_path, plain)]).results.cross is None
