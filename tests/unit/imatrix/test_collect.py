"""Sums of squares against float64 NumPy, dense and by experts; faults are named."""

from __future__ import annotations

import numpy as np
import pytest

from bitloss.engine.base import EngineFacts, Outputs
from bitloss.engine.fake import FakeEngine
from bitloss.errors import EngineError
from bitloss.imatrix.collect import Collector, collect_imatrix
from bitloss.model.text import cut_chunks
from bitloss.progress import Progress

NAME = "blk.0.ffn_down.weight"


@pytest.mark.parametrize(("n_mat", "n_in"), [(1, 1), (1, 7), (1, 64), (3, 33)])
def test_dense_sums_and_counts(n_mat: int, n_in: int) -> None:
    rng = np.random.default_rng(n_in)
    batches = [
        (rng.standard_normal((n_mat, rows, n_in)) * 10.0 ** rng.integers(-6, 6)).astype(np.float32)
        for rows in (1, 16, 5, 200)
    ]
    collector = Collector()
    for batch in batches:
        collector.dense(NAME, batch)
    whole = np.concatenate(batches, axis=1).astype(np.float64)
    np.testing.assert_allclose(collector.sums[NAME], (whole**2).sum(axis=1), rtol=1e-13)
    np.testing.assert_array_equal(collector.counts[NAME], [222.0])


def test_sums_keep_what_float32_would_lose() -> None:
    collector = Collector()
    collector.dense(NAME, np.full((1, 1, 1), 4096, np.float32))  # 2^24: one more is lost in float32
    collector.dense(NAME, np.ones((1, 1, 1), np.float32))
    assert collector.sums[NAME][0, 0] == 2.0**24 + 1


@pytest.mark.parametrize("n_expert", [1, 4, 9])
def test_expert_sums_and_counts(n_expert: int) -> None:
    rng = np.random.default_rng(n_expert)
    collector = Collector()
    sums, counts = np.zeros((n_expert, 33)), np.zeros(n_expert)
    for rows in (1, 40, 13):
        x = rng.standard_normal((rows, 33)).astype(np.float32)
        ids = rng.integers(0, max(1, n_expert - 1), rows).astype(np.int32)  # the last one is never chosen
        collector.experts(NAME, n_expert, x, ids)
        for row, expert in zip(x.astype(np.float64), ids, strict=True):
            sums[expert] += row**2
            counts[expert] += 1
    np.testing.assert_allclose(collector.sums[NAME], sums, rtol=1e-13)
    np.testing.assert_array_equal(collector.counts[NAME], counts)


def test_strided_inputs_are_read_as_they_are() -> None:
    x = np.random.default_rng(0).standard_normal((40, 66)).astype(np.float32)
    ids = np.arange(40, dtype=np.int64) % 3
    collector = Collector()
    collector.experts("blk.0.a", 3, x[:, ::2], ids.astype(np.int32)[::1])
    collector.dense("blk.0.b", x[None, ::2, ::3])
    np.testing.assert_allclose(collector.sums["blk.0.a"].sum(0), (x[:, ::2].astype(np.float64) ** 2).sum(0))
    np.testing.assert_allclose(collector.sums["blk.0.b"][0], (x[::2, ::3].astype(np.float64) ** 2).sum(0))


@pytest.mark.parametrize("bad", [-1, 4, 2**31 - 1])
def test_an_expert_that_does_not_exist(bad: int) -> None:
    collector = Collector()
    with pytest.raises(EngineError, match=rf"{NAME}.*expected 0..3, found {bad}"):
        collector.experts(NAME, 4, np.ones((2, 3), np.float32), np.array([0, bad], np.int32))
    assert not collector.sums[NAME].any()


def test_inputs_that_change_their_shape() -> None:
    collector = Collector()
    collector.dense(NAME, np.ones((1, 2, 3), np.float32))
    with pytest.raises(EngineError, match="changing shape"):
        collector.dense(NAME, np.ones((1, 2, 4), np.float32))
    with pytest.raises(EngineError, match="changing shape"):
        collector.experts(NAME, 2, np.ones((2, 3), np.float32), np.zeros(2, np.int32))


def test_only_weights_of_layers_are_wanted() -> None:
    collector = Collector()
    assert collector.wants("blk.11.attn_q.weight")
    assert not collector.wants("output.weight")
    assert not collector.wants("token_embd.weight")


def _chunks() -> tuple[FakeEngine, np.ndarray]:
    engine = FakeEngine(n_embd=8)
    return engine, np.random.default_rng(1).integers(1, 97, 5 * 16).astype(np.int32)


def test_a_pass_sums_every_position_with_bos_in_place() -> None:
    engine, tokens = _chunks()
    chunks = cut_chunks(tokens, n_ctx=16, n_chunks=None, bos=0, where="t")
    seen: list[Progress] = []
    made = collect_imatrix(engine, chunks, dataset="t.txt", progress=seen.append)
    computed = tokens.reshape(5, 16).copy()
    computed[:, 0] = 0
    states = np.cumsum(engine.embedding[computed], axis=1, dtype=np.float64) / np.arange(1, 17)[:, None]
    squares = states.astype(np.float32).astype(np.float64) ** 2
    entry = made.entries[FakeEngine.weight]
    np.testing.assert_allclose(entry.sums, squares.sum(axis=(0, 1))[None], rtol=1e-13)
    np.testing.assert_array_equal(entry.counts, [80.0])
    assert (made.chunk_count, made.chunk_size, made.datasets, made.is_legacy) == (5, 16, ("t.txt",), False)
    assert [p.done for p in seen] == [1, 2, 3, 4, 5]


def test_an_activation_that_is_not_finite_names_tensor_and_column() -> None:
    engine, tokens = _chunks()
    engine.embedding[int(tokens[20]), 5] = np.inf
    chunks = cut_chunks(tokens, n_ctx=16, n_chunks=None, bos=0, where="t")
    with pytest.raises(EngineError, match=rf"{FakeEngine.weight}.*not finite at column 5"):
        collect_imatrix(engine, chunks, dataset="t")


def test_a_model_without_layers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, tokens = _chunks()
    monkeypatch.setattr(FakeEngine, "weight", "output.weight")
    chunks = cut_chunks(tokens, n_ctx=16, n_chunks=None, bos=0, where="t")
    assert isinstance(engine.facts, EngineFacts)
    assert all(rows.values.size == 0 for rows in engine.evaluate(chunks.as_computed(), Outputs.NOTHING))
    with pytest.raises(EngineError, match="no weight of a layer"):
        collect_imatrix(engine, chunks, dataset="t")
