"""Measuring equals the definition applied to all logits at once; token tables survive the disk or are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from bitloss.divergence.measure import TokenTable, measure, measure_together, read_tokens, write_tokens
from bitloss.divergence.metrics import COLUMNS, token_metrics_reference
from bitloss.engine.base import Outputs
from bitloss.engine.fake import FakeEngine
from bitloss.errors import EngineError, FileProblem, MismatchError, RecordError
from bitloss.model.text import Chunks, cut_chunks, scored_positions
from bitloss.progress import Progress


class _BaseInMemory:
    """Base logits of an engine, held whole: [chunks, scored, n_vocab]."""

    def __init__(self, engine: FakeEngine, chunks: Chunks, rows_per_slice: int) -> None:
        self.chunks = chunks
        self.n_vocab = engine.facts.n_vocab
        self.rows_per_slice = rows_per_slice
        self.known_in_part = False
        self.all = _logits(engine, chunks)

    def logits(self, chunk: int, first: int, rows: int) -> NDArray[np.float32]:
        assert rows <= self.rows_per_slice
        return self.all[chunk, first : first + rows]


def _logits(engine: FakeEngine, chunks: Chunks) -> NDArray[np.float32]:
    rows = [r.values for r in engine.evaluate(chunks.as_computed(), Outputs.LOGITS)]
    return np.concatenate(rows).reshape(chunks.n_chunks, -1, engine.facts.n_vocab)


def _chunks(n_ctx: int = 17, n: int = 4) -> Chunks:
    tokens = np.random.default_rng(3).integers(1, 97, n * n_ctx).astype(np.int32)
    return cut_chunks(tokens, n_ctx=n_ctx, n_chunks=None, bos=0, where="test")


@pytest.fixture(scope="module")
def table() -> TokenTable:
    base = _BaseInMemory(FakeEngine(), _chunks(), 64)
    return measure(FakeEngine(noise=0.3), base, threads=1)


@pytest.mark.parametrize("micro_batch", [1, 3, 8, 100])
@pytest.mark.parametrize("rows_per_slice", [1, 2, 5, 64])
@pytest.mark.parametrize("n_ctx", [16, 17])
def test_measuring_equals_the_definition_at_every_slicing(
    micro_batch: int, rows_per_slice: int, n_ctx: int
) -> None:
    chunks = _chunks(n_ctx)
    candidate = FakeEngine(noise=0.3, micro_batch=micro_batch)
    base = _BaseInMemory(FakeEngine(), chunks, rows_per_slice)
    seen: list[Progress] = []
    table = measure(candidate, base, threads=2, progress=seen.append)

    scored = scored_positions(n_ctx)
    expected_places = [(c, i, chunks.tokens[c, i + 1]) for c in range(4) for i in scored]
    assert list(zip(table.chunk, table.position, table.target, strict=True)) == expected_places
    flat = (-1, candidate.facts.n_vocab)
    direct = token_metrics_reference(
        base.all.reshape(flat), _logits(candidate, chunks).reshape(flat), table.target
    )
    for name, dtype in COLUMNS.items():
        told, truth = getattr(table.metrics, name), getattr(direct, name)
        assert told.dtype == dtype
        if np.dtype(dtype).kind == "f":
            rtol = 2e-7 if name == "js" else 4e-9  # what the kernel promises: see test_metrics.py
            np.testing.assert_allclose(told, truth, rtol=rtol, atol=1e-12, err_msg=name)
        else:
            np.testing.assert_array_equal(told, truth, err_msg=name)
    assert table.metrics.kld.min() > 1e-6
    assert [(p.done, p.total) for p in seen][-1] == (4, 4)


def test_a_model_against_itself_diverges_by_exactly_zero() -> None:
    base = _BaseInMemory(FakeEngine(), _chunks(), 5)
    metrics = measure(FakeEngine(), base, threads=1).metrics
    assert (metrics.kld == 0).all()
    assert (metrics.dp == 0).all()
    assert metrics.same_top.all()


class _Counting(_BaseInMemory):
    calls = 0

    def logits(self, chunk: int, first: int, rows: int) -> NDArray[np.float32]:
        self.calls += 1
        return super().logits(chunk, first, rows)


def test_measuring_together_gives_what_measuring_alone_does_and_asks_the_base_once() -> None:
    base = _Counting(FakeEngine(), _chunks(), 5)
    noises = (0.0, 0.1, 0.3)
    alone = [measure(FakeEngine(noise=noise, micro_batch=7), base, threads=1) for noise in noises]
    calls, base.calls = base.calls, 0
    together = measure_together([FakeEngine(noise=noise, micro_batch=7) for noise in noises], base, threads=1)
    assert base.calls == calls // 3
    for one, each in zip(alone, together, strict=True):
        assert each.table.metrics.equals(one.metrics)
        np.testing.assert_array_equal(each.table.target, one.target)
        assert each.seconds > 0


def test_chosen_chunks_come_in_the_order_asked_for() -> None:
    base = _BaseInMemory(FakeEngine(), _chunks(), 5)
    whole = measure(FakeEngine(noise=0.3), base, threads=1)
    which = np.array([2, 0, 3])
    (few,) = measure_together([FakeEngine(noise=0.3)], base, which=which, threads=1)
    length = len(whole) // 4
    for k, chunk in enumerate(which):
        mine, theirs = (
            few.table.metrics[np.s_[k * length : (k + 1) * length]],
            whole.metrics[np.s_[chunk * length : (chunk + 1) * length]],
        )
        assert mine.equals(theirs)


def test_engines_out_of_step_are_refused() -> None:
    base = _BaseInMemory(FakeEngine(), _chunks(), 5)
    with pytest.raises(EngineError, match="same rows"):
        measure_together([FakeEngine(micro_batch=4), FakeEngine(micro_batch=8)], base, threads=1)


def test_another_vocabulary_is_refused() -> None:
    base = _BaseInMemory(FakeEngine(), _chunks(), 5)
    with pytest.raises(MismatchError, match="expected 97 entries, found 98"):
        measure(FakeEngine(n_vocab=98), base, threads=1)


def test_tokens_come_back_from_parquet_bit_for_bit(table: TokenTable, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    odd = table.metrics.kld.copy()
    odd[:3] = [np.nan, np.inf, 5e-324]
    metrics = dataclasses.replace(table.metrics, kld=odd)
    write_tokens(dataclasses.replace(table, metrics=metrics), path, {"candidate": "c.gguf"})
    back, facts = read_tokens(path)
    assert facts == {"candidate": "c.gguf"}
    assert back.metrics.equals(metrics)
    for name in ("chunk", "position", "target"):
        np.testing.assert_array_equal(getattr(back, name), getattr(table, name))
        assert getattr(back, name).dtype == np.int32


def test_tokens_cut_anywhere_are_refused_in_one_line(table: TokenTable, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_tokens(table, path, {})
    data = path.read_bytes()
    for length in [*range(64), *range(64, len(data) - 64, 97), *range(len(data) - 64, len(data))]:
        path.write_bytes(data[:length])
        with pytest.raises(RecordError) as caught:
            read_tokens(path)
        assert "t.parquet" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_tokens_with_flipped_bytes_are_refused_or_still_a_table(table: TokenTable, tmp_path: Path) -> None:
    """Parquet itself has no checksum here; the run folder's hash finds what this reader cannot."""
    path = tmp_path / "t.parquet"
    write_tokens(table, path, {})
    data = path.read_bytes()
    refused = 0
    for at in np.random.default_rng(0).integers(0, len(data), 150):
        bad = bytearray(data)
        bad[at] ^= 0xFF
        path.write_bytes(bad)
        try:
            assert len(read_tokens(path)[0]) >= 0
        except RecordError:
            refused += 1
    assert refused > 50


def test_other_parquet_files_are_refused(table: TokenTable, tmp_path: Path) -> None:
    with pytest.raises(FileProblem):
        read_tokens(tmp_path / "none")
    path = tmp_path / "t.parquet"
    write_tokens(table, path, {})
    arrow = pq.read_table(path)
    for name, other in {
        "no metadata": arrow.replace_schema_metadata(None),
        "other version": arrow.replace_schema_metadata({"bitloss": '{"schema": "bitloss/tokens@99"}'}),
        "no object": arrow.replace_schema_metadata({"bitloss": "[]"}),
        "no column": arrow.drop_columns(["kld"]),
        "text column": arrow.set_column(3, "nll_base", [["x"] * len(arrow)]),
        "null": arrow.set_column(3, "nll_base", [[None] * len(arrow)]),
    }.items():
        pq.write_table(other, path)
        with pytest.raises(RecordError):
            pytest.fail(f"{name} was read: {read_tokens(path)}")
