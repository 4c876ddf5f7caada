"""Aggregates for pictures equal what NumPy and SciPy give for the same tokens."""

from __future__ import annotations

import dataclasses
import itertools
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from tests.tokens import token_table, write_table

from bitloss.divergence.clusters import clusters_of_chunks
from bitloss.divergence.statistics import summarize
from bitloss.errors import MismatchError
from bitloss.records import Results
from bitloss.report.summary import LEVELS, read_table, summarize_tokens, token_files
from bitloss.report.write import gather


def test_quantiles_are_the_tables() -> None:
    table = token_table(20, 64)
    summary = summarize_tokens(table)
    printed = summarize(table.metrics, table.chunk)
    for level, key in (
        (0.001, "kld_p0_1"),
        (0.05, "kld_p5"),
        (0.5, "kld_median"),
        (0.99, "kld_p99"),
        (0.999, "kld_p99_9"),
    ):
        assert summary.kld[LEVELS.index(level)] == pytest.approx(printed[key].value, rel=1e-12)
    assert (summary.tokens, summary.left_out) == (1280, 0)


def test_groups_partition_the_tokens_and_keep_their_sum() -> None:
    table = token_table(20, 64)
    summary = summarize_tokens(table)
    for bins in (summary.by_position, summary.by_entropy):
        assert sum(b.tokens for b in bins) == 1280
        assert sum(b.tokens * b.kld for b in bins) == pytest.approx(table.metrics.kld.sum(), rel=1e-12)
        assert all(a.high < b.low for a, b in itertools.pairwise(bins))
    expected = stats.binned_statistic(
        table.metrics.entropy_base, table.metrics.kld, bins=[b.low for b in summary.by_entropy] + [7]
    ).statistic
    np.testing.assert_allclose([b.kld for b in summary.by_entropy], expected, rtol=1e-12)


def test_a_groups_error_is_the_tables_where_the_group_is_everything() -> None:
    table = token_table(20, 64)
    one = dataclasses.replace(table, position=np.full_like(table.position, 70))
    (everything,) = summarize_tokens(one).by_position
    printed = summarize(table.metrics, table.chunk)["kld_mean"]
    assert everything.kld == pytest.approx(printed.value, rel=1e-12)
    assert everything.se == pytest.approx(printed.se_clustered, rel=1e-12)


def test_groups_are_clustered_as_the_table_is() -> None:
    table = token_table(20, 64)
    one = dataclasses.replace(table, position=np.full_like(table.position, 70))
    clusters = clusters_of_chunks(table.chunk, texts=[12, 8], documents=[1, 2, 1, 1, 1, 4, 2, *[1] * 8])
    (everything,) = summarize_tokens(one, clusters).by_position
    printed = summarize(table.metrics, clusters)["kld_mean"]
    assert everything.se == pytest.approx(printed.se_clustered, rel=1e-12)
    assert printed.se_clustered != summarize(table.metrics, table.chunk)["kld_mean"].se_clustered
    lone = clusters_of_chunks(table.chunk, texts=[19, 1])
    assert all(each.se is None for each in summarize_tokens(one, lone).by_position)


def test_worst_first_and_nothing_that_is_not_finite() -> None:
    table = token_table(4, 50)
    table.metrics.kld[[3, 77]] = (np.inf, np.nan)
    summary = summarize_tokens(table, worst=10)
    finite = np.where(np.isfinite(table.metrics.kld), table.metrics.kld, -1)
    assert list(summary.worst) == np.argsort(-finite)[:10].tolist()
    assert summary.left_out == 2
    table.metrics.kld[:] = np.nan
    assert summarize_tokens(table).kld == ()


def test_files_are_found_by_name_tensors_or_twin(sample_document: dict[str, Any], tmp_path: Path) -> None:
    sample_document["candidates"][0]["tokens"] = "odd-name.parquet"
    results = Results.model_validate(sample_document)
    tokens = token_table(2, 8)
    named = write_table(tokens, tmp_path, "odd-name")
    by_file = write_table(tokens, tmp_path, results.candidates[1].file.removesuffix(".gguf"))
    by_tensors = write_table(tokens, tmp_path, "whatever", results.candidates[2].tensors_sha256)
    write_table(tokens, tmp_path, "noise-floor", results.candidates[3].tensors_sha256)
    (tmp_path / "tokens" / "broken.parquet").write_bytes(b"PAR1")
    found = token_files(results, tmp_path)
    assert found == {
        "Q4_K_M/f32": named,
        "Q4_K_M/f16": by_file,
        "Q8_0/f32": by_tensors,
        "Q8_0/f16": by_tensors,
    }


def test_tokens_of_another_text_are_left_out_and_said(sample_results: Results, tmp_path: Path) -> None:
    path = write_table(token_table(2, 8), tmp_path, "q4", sample_results.candidates[0].tensors_sha256)
    with pytest.raises(MismatchError, match="163710 tokens, found 16"):
        read_table(path, sample_results)
    gathered = gather(sample_results, {"Q4_K_M/f32": path}, None)
    assert gathered.tokens == {}
    assert gathered.warnings[0] == (
        "Left out of the pictures: q4.parquet: per-token results of another text. The pictures of tokens and the worst "
        "tokens lack Q4_K_M/f32. Copy the file back, or measure again."
    )
    assert "not here for Q4_K_M/f16, Q8_0/f32, Q8_0/f16" in gathered.warnings[1]


def test_memory_does_not_grow_with_the_number_of_files(
    sample_document: dict[str, Any], tmp_path: Path
) -> None:
    sample_document["text"] |= {"chunks": 100, "scored_tokens": 25_500}
    results = Results.model_validate(sample_document)
    files = {
        c.name: write_table(token_table(100, 255, seed=i), tmp_path, f"t{i}")
        for i, c in enumerate(results.candidates)
    }

    def peak(names: list[str]) -> int:
        tracemalloc.start()
        gather(results, {name: files[name] for name in names}, None)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    one = peak(["Q4_K_M/f32"])
    assert peak(list(files)) < 1.3 * one
