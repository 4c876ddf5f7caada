"""The file for a budget: weights, cache and buffers counted, ties named, nothing guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bitloss.engine.base import EngineOptions
from bitloss.engine.memory import engine_bytes
from bitloss.errors import UsageError
from bitloss.model.gguf import GgufFile
from bitloss.model.random_model import RandomShape, random_gguf
from bitloss.records import Results
from bitloss.report.pick import files_of, pick, shape_of

GIB = 1 << 30


def test_the_lowest_divergence_that_fits_and_the_smallest_of_those_tied(sample_results: Results) -> None:
    found = pick(sample_results, budget=24 * GIB, n_ctx=8192, besides=GIB)
    assert found.best is not None
    assert found.lowest is not None
    assert found.best.name == "Q8_0/f16"  # 32 bytes smaller than its twin
    assert set(found.tied) == {"Q8_0/f16", "Q8_0/f32"}
    smaller = pick(sample_results, budget=8 * GIB, n_ctx=8192, besides=GIB)
    assert smaller.best is not None
    assert smaller.best.name == "Q4_K_M/f16"
    assert smaller.lowest is not None
    assert smaller.lowest.name == "Q4_K_M/f32"
    words = smaller.words()
    assert (
        "Q4_K_M/f16 (Mistral-Nemo-Instruct-2407-f16-Q4_K_M.gguf, 6.96 GiB), mean KLD 0.018119 ± 0.000171"
        in words
    )
    assert "Tied with it on this text: Q4_K_M/f32." in words
    assert "Q4_K_M/f32 has the lowest mean KLD, 0.018110 ± 0.000168, but is no better beyond chance." in words


def test_files_with_the_same_tensors_are_not_called_tied(sample_document: dict[str, Any]) -> None:
    found = pick(Results.model_validate(sample_document), budget=24 * GIB, n_ctx=8192, besides=GIB)
    assert found.same_tensors() == ("Q8_0/f32",)
    assert " With the same tensors: Q8_0/f32." in found.words()
    assert "Tied" not in found.words()
    # and where one is tied with both, each is called what it is
    tie = sample_document["comparisons"][1] | {"b": "Q4_K_M/f32", "verdict": "tie", "p_holm": 1.0}
    twin = tie | {"a": "Q8_0/f16"}
    sample_document["comparisons"] += (twin,)
    sample_document["comparisons"] = (tie, *sample_document["comparisons"][2:])
    both = pick(Results.model_validate(sample_document), budget=24 * GIB, n_ctx=8192, besides=GIB)
    assert both.best is not None
    assert both.best.name == "Q4_K_M/f32"
    assert both.same_tensors() == ()
    assert " Tied with it on this text: Q8_0/f16, Q8_0/f32." in both.words()


def test_the_budget_is_met_to_the_byte(sample_results: Results) -> None:
    needed = 7_477_208_160 + 1000
    assert pick(sample_results, budget=needed - 1, n_ctx=512, besides=1000).best is None
    assert pick(sample_results, budget=needed, n_ctx=512, besides=1000).best is not None
    nothing = pick(sample_results, budget=needed - 1, n_ctx=512, besides=1000)
    assert nothing.words() == (
        "No file fits into 6.96 GiB and a context of 512 tokens: the smallest takes about 6.96 GiB, 1 B too much."
    )


def test_a_difference_is_not_a_tie(sample_document: dict[str, Any]) -> None:
    first, *rest = sample_document["comparisons"]
    sample_document["comparisons"] = (first | {"verdict": "better", "p_holm": 0.001}, *rest)
    found = pick(Results.model_validate(sample_document), budget=8 * GIB, n_ctx=512, besides=0)
    assert found.best is not None
    assert found.best.name == "Q4_K_M/f32"
    assert found.tied == ("Q4_K_M/f32",)


def test_what_is_not_known_is_said(sample_results: Results, tmp_path: Path) -> None:
    assert shape_of(files_of(sample_results, tmp_path), 512) is None
    found = pick(sample_results, budget=8 * GIB, n_ctx=512, besides=None)
    assert found.best is not None
    assert found.words().startswith(
        "By weights alone, for 8.00 GiB and a context of 512 tokens: Q4_K_M/f16 ("
    )
    assert (
        "Whether it fits with its cache is not known: no GGUF file of this run is in its folder or where"
        in found.words()
    )
    assert found.surely_fits() == (False, False, None, None)
    assert found.table().columns[3] == "Takes more than"
    assert [row[-1] for row in found.table().rows] == [
        "no",
        "no",
        "not known (weights do)",
        "not known (weights do)",
    ]
    assert pick(sample_results, budget=8 * GIB, n_ctx=512, besides=0).surely_fits() == (
        False,
        False,
        True,
        True,
    )
    none = pick(sample_results, budget=GIB, n_ctx=512, besides=None)
    assert none.words() == (
        "No file fits into 1.00 GiB and a context of 512 tokens: the smallest file alone takes 6.96 GiB, 5.96 GiB too "
        "much."
    )
    (tmp_path / "candidates").mkdir()
    (tmp_path / "candidates" / sample_results.candidates[0].file).write_bytes(b"GGUF broken")
    assert shape_of(files_of(sample_results, tmp_path), 512) is None


def test_cache_and_buffers_are_told_by_a_file_of_the_run(sample_results: Results, tmp_path: Path) -> None:
    (tmp_path / "candidates").mkdir()
    shape = RandomShape(
        n_vocab=320, n_embd=256, n_layer=3, n_head=4, n_head_kv=2, head_dim=64, n_ff=256, n_ctx_train=4096
    )
    path = random_gguf(
        tmp_path / "candidates" / sample_results.candidates[1].file, shape, seed=7, dtype="f32"
    )
    told = shape_of(files_of(sample_results, tmp_path), 2048)
    assert told is not None
    assert told.told_by == path.name
    file = GgufFile.open(path)
    options = EngineOptions(batch=512, ubatch=512)
    assert told.besides == engine_bytes(file, options, n_ctx=2048) - file.size
    longer = shape_of([path], 4096)
    assert longer is not None
    # per token: keys and values of every layer in F16, and a column of the attention scores of a micro-batch
    assert longer.besides - told.besides == 2048 * (3 * 2 * (64 + 64) * 2 + 4 * 512 * 4)
    with pytest.raises(UsageError, match="at most 4096"):
        shape_of([path], 4097)
    assert shape_of([path], 8192, or_longest=True) == longer
    assert shape_of([path], 2048, or_longest=True) == told


def test_no_files_at_all(sample_document: dict[str, Any]) -> None:
    sample_document |= {"candidates": (), "comparisons": ()}
    found = pick(Results.model_validate(sample_document), budget=GIB, n_ctx=512, besides=0)
    assert found.best is None
    assert found.words() == "Nothing to pick from. This run has no candidates yet."


def test_a_file_without_a_divergence_is_named_and_left_out(sample_document: dict[str, Any]) -> None:
    first = sample_document["candidates"][0]
    first["metrics"] = first["metrics"] | {"kld_mean": {"value": None, "reason": "3 tokens are not finite"}}
    found = pick(Results.model_validate(sample_document), budget=24 * GIB, n_ctx=512, besides=0)
    assert found.left_out == ("Q4_K_M/f32",)
    assert len(found.fits) == 3
    assert found.words().endswith(" Left out, having no mean KLD: Q4_K_M/f32.")
    sample_document |= {"candidates": (first,), "comparisons": ()}
    alone = pick(Results.model_validate(sample_document), budget=24 * GIB, n_ctx=512, besides=0)
    assert alone.words() == "Nothing to pick from. Left out, having no mean KLD: Q4_K_M/f32."
