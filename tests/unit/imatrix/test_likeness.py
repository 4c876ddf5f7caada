"""How alike importance matrices are, and halves that are kept from one pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bitloss.engine.base import Rows
from bitloss.engine.fake import FakeEngine
from bitloss.errors import MismatchError
from bitloss.imatrix.collect import collect_halves, collect_imatrix
from bitloss.imatrix.likeness import likeness
from bitloss.imatrix.matrix import Imatrix, ImatrixEntry
from bitloss.model.text import cut_chunks


def _matrix(**entries: tuple[list[list[float]], list[float]]) -> Imatrix:
    return Imatrix(
        {name: ImatrixEntry(np.array(sums), np.array(counts)) for name, (sums, counts) in entries.items()},
        4,
        16,
    )


def test_by_hand() -> None:
    a = _matrix(x=([[2.0, 8.0, 4.0]], [2.0]), y=([[1.0, 3.0]], [1.0]))  # means 1, 4, 2; 1, 3
    b = _matrix(x=([[4.0, 16.0, 8.0]], [4.0]), y=([[2.0, 3.0]], [1.0]))  # means 1, 4, 2; 2, 3
    found = likeness(a, b)
    assert found.columns == 5
    assert found.left_out == 0
    assert found.largest_ratio == pytest.approx(2.0)
    assert found.largest_ratio_at == "y"
    assert found.spread == pytest.approx(np.log(2.0) / np.sqrt(5))
    assert found.correlation_lowest == pytest.approx(1.0)
    assert likeness(b, a).spread == found.spread


def test_correlation_is_numpys() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.exponential(1.0, (2, 1, 300))
    found = likeness(_matrix(w=(x.tolist(), [7.0])), _matrix(w=(y.tolist(), [3.0])))
    assert found.correlation_lowest == pytest.approx(np.corrcoef(x[0], y[0])[0, 1])
    assert found.correlation_median == found.correlation_lowest
    assert found.correlation_lowest_at == "w"


def test_zeros_and_experts_nobody_reached_are_left_out() -> None:
    a = _matrix(w=([[1.0, 0.0], [5.0, 5.0]], [1.0, 0.0]))
    b = _matrix(w=([[2.0, 1.0], [5.0, 5.0]], [1.0, 1.0]))
    found = likeness(a, b)
    assert (found.columns, found.left_out) == (1, 3)
    assert found.largest_ratio_at == "w[0]"
    assert found.correlation_lowest is None  # a single column does not vary
    nothing = likeness(_matrix(w=([[0.0]], [1.0])), _matrix(w=([[1.0]], [1.0])))
    assert nothing.columns == 0
    assert nothing.spread is nothing.largest_ratio is None


def test_other_weights_are_refused() -> None:
    one = _matrix(x=([[1.0, 2.0]], [1.0]))
    with pytest.raises(MismatchError, match="different weights"):
        likeness(one, _matrix(y=([[1.0, 2.0]], [1.0])))
    with pytest.raises(MismatchError, match="different weights"):
        likeness(one, _matrix(x=([[1.0, 2.0, 3.0]], [1.0])))


@pytest.mark.parametrize("n_chunks", [2, 5, 6])
def test_halves_come_from_the_same_pass_and_add_up(n_chunks: int) -> None:
    engine = FakeEngine(n_embd=8)
    tokens = np.random.default_rng(1).integers(1, 97, n_chunks * 16).astype(np.int32)
    chunks = cut_chunks(tokens, n_ctx=16, n_chunks=None, bos=0, where="t")
    made = collect_halves(engine, chunks, dataset="t")
    assert made.halves is not None
    name = FakeEngine.weight
    whole = made.imatrix.entries[name]
    first, second = (half.entries[name] for half in made.halves)
    np.testing.assert_allclose(first.sums + second.sums, whole.sums, rtol=1e-12)
    np.testing.assert_array_equal(first.counts + second.counts, whole.counts)
    half = -(-n_chunks // 2)
    alone = cut_chunks(tokens[: half * 16], n_ctx=16, n_chunks=None, bos=0, where="t") if half > 1 else None
    assert first.counts[0] == 16 * half
    if alone is not None:
        expected = collect_imatrix(engine, alone, dataset="t").entries[name]
        np.testing.assert_array_equal(first.sums, expected.sums)
    np.testing.assert_array_equal(whole.sums, collect_imatrix(engine, chunks, dataset="t").entries[name].sums)


class _SideBySide(FakeEngine):
    """Computes pairs of chunks in stretches of half a chunk, as llama.cpp does with short micro-batches."""

    def evaluate(self, chunks: Any, outputs: Any, observer: Any = None, *, scored: Any = None) -> Any:
        n_ctx = chunks.shape[1]
        for first in range(0, len(chunks), 2):
            group = chunks[first : first + 2]
            for begin in range(0, n_ctx, n_ctx // 2):
                rows = self.embedding[group[:, begin : begin + n_ctx // 2]].reshape(1, -1, self.facts.n_embd)
                observer.dense(self.weight, rows)
                yield Rows(first + len(group) - 1, begin, np.empty((0, 0), np.float32))


@pytest.mark.parametrize(("n_chunks", "first_half"), [(6, 4), (3, 2), (2, None)])
def test_no_chunk_is_cut_in_halves(n_chunks: int, first_half: int | None) -> None:
    tokens = np.random.default_rng(1).integers(1, 97, n_chunks * 16).astype(np.int32)
    chunks = cut_chunks(tokens, n_ctx=16, n_chunks=None, bos=0, where="t")
    halves = collect_halves(_SideBySide(n_embd=8), chunks, dataset="t").halves
    if first_half is None:  # all of the text was computed at once
        assert halves is None
        return
    assert halves is not None
    assert halves[0].entries[FakeEngine.weight].counts[0] == 16 * first_half
    assert halves[1].entries[FakeEngine.weight].counts[0] == 16 * (n_chunks - first_half)
