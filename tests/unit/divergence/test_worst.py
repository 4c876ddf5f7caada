"""The worst tokens kept while measuring are those a sort of everything gives, with softmax's own probabilities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax
from tests.unit.divergence.test_measure import _BaseInMemory, _chunks, _logits

from bitloss.divergence.measure import TokenTable, measure, measure_together, read_tokens, write_tokens
from bitloss.divergence.worst import AFTER, BEFORE, KEPT, Rows, Worst, WorstKeeper, likeliest
from bitloss.engine.fake import FakeEngine


def test_kept_are_those_a_sort_gives_with_both_distributions() -> None:
    chunks = _chunks(33, 8)
    base = _BaseInMemory(FakeEngine(), chunks, 5)
    candidate = FakeEngine(noise=0.3, micro_batch=7)
    table = measure(candidate, base, threads=1)
    order = np.argsort(-table.metrics.kld, kind="stable")[:KEPT]
    places = [(int(table.chunk[i]), int(table.position[i])) for i in order]
    kept = table.worst.tokens
    assert [(t.chunk, t.position) for t in kept] == places
    assert [t.kld for t in kept] == table.metrics.kld[order].tolist()
    logits = _logits(candidate, chunks)
    start = int(table.position[0])
    for t in kept:
        text = chunks.tokens[t.chunk]
        assert t.first == max(0, t.position + 1 - BEFORE)
        assert list(t.tokens) == text[t.first : t.position + 2 + AFTER].tolist()
        row = t.position - start
        for entries, of in ((t.base, base.all[t.chunk, row]), (t.candidate, logits[t.chunk, row])):
            p = softmax(of.astype(np.float64))
            best = np.argsort(-p, kind="stable")[:5]
            assert [i for i, _ in entries] == best.tolist()
            np.testing.assert_allclose([q for _, q in entries], p[best], rtol=1e-12)
    ids = {i for t in kept for i in (*t.tokens, *(k for k, _ in (*t.base, *t.candidate)))}
    assert set(table.worst.pieces) == ids


@pytest.mark.parametrize("n", [3, 64, 65, 5000])
def test_likeliest_takes_the_lower_of_equals(n: int) -> None:
    logits = np.zeros(n, np.float32)
    logits[n // 2] = 3
    ids = [i for i, _ in likeliest(logits)]
    assert ids == [n // 2, *[i for i in range(n) if i != n // 2][:4]]


def test_rows_without_a_finite_divergence_are_passed_over() -> None:
    keeper = WorstKeeper()
    text = np.arange(20, dtype=np.int32)
    logits = np.random.default_rng(0).random((4, 97)).astype(np.float32)
    keeper.look(Rows(0, text, 9, np.array([np.nan, 0.5, np.inf, 0.0])), logits, logits)
    assert [(t.position, t.kld) for t in keeper.worst.tokens] == [(10, 0.5)]


def test_chosen_and_joined_chunks_keep_their_places() -> None:
    base = _BaseInMemory(FakeEngine(), _chunks(33, 8), 64)
    whole = measure(FakeEngine(noise=0.3), base, threads=1)
    order = np.array([5, 0, 7, 2, 1, 3, 6, 4])
    parts = [
        measure_together([FakeEngine(noise=0.3)], base, which=part, threads=1)[0].table
        for part in (order[:3], order[3:])
    ]
    for part, which in zip(parts, (order[:3], order[3:]), strict=True):
        for t in part.worst.tokens:
            row = np.flatnonzero((part.chunk == t.chunk) & (part.position == t.position))
            assert part.metrics.kld[row] == t.kld
            assert base.chunks.tokens[which[t.chunk], t.position + 1] == t.tokens[t.position + 1 - t.first]
    joined = TokenTable.join(parts, order)
    assert joined.worst.tokens == whole.worst.tokens


def test_words_survive_the_disk(tmp_path: Path) -> None:
    base = _BaseInMemory(FakeEngine(), _chunks(), 64)
    table = measure(FakeEngine(noise=0.3), base, threads=1)
    odd = {i: f"\x00\u202e</script>{i}" for i in table.worst.pieces}
    import dataclasses

    table = dataclasses.replace(table, worst=Worst(tokens=table.worst.tokens, pieces=odd))
    write_tokens(table, tmp_path / "t.parquet", {"candidate": "x"})
    again, facts = read_tokens(tmp_path / "t.parquet")
    assert again.worst == table.worst
    assert facts == {"candidate": "x"}


def test_bytes_that_are_no_text_are_spelled_out() -> None:
    base = _BaseInMemory(FakeEngine(), _chunks(), 64)
    worst = measure(FakeEngine(noise=0.3), base, threads=1).worst.spelled(lambda i: b"\xf0\x9f")
    assert set(worst.pieces.values()) == {"\\xf0\\x9f"}
