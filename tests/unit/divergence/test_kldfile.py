"""The format by hand, what is made of it, and the round trip."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from bitloss.divergence.kldfile import KldFile, encode_rows, is_kld, write_kld
from bitloss.divergence.measure import measure
from bitloss.divergence.metrics import LEFT_OUT, token_metrics
from bitloss.divergence.partial import partial_metrics
from bitloss.engine.fake import FakeEngine
from bitloss.errors import BaseError, FileProblem, MismatchError
from bitloss.model.text import Chunks, scored_positions


class Logits(NamedTuple):
    """A base of logits held in memory: [chunks, scored, n_vocab]."""

    chunks: Chunks
    values: NDArray[np.float32]
    rows_per_slice: int = 5
    known_in_part: bool = False

    @property
    def n_vocab(self) -> int:
        return int(self.values.shape[2])

    def logits(self, chunk: int, first: int, rows: int) -> NDArray[np.float32]:
        return self.values[chunk, first : first + rows]


def some(
    n_vocab: int = 7, *, n_ctx: int = 8, n_chunks: int = 2, spread: float = 3.0, seed: int = 0
) -> Logits:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, n_vocab, (n_chunks, n_ctx), np.int32)
    values = spread * rng.standard_normal((n_chunks, len(scored_positions(n_ctx)), n_vocab))
    return Logits(Chunks(tokens, True, 1), values.astype(np.float32))


def test_bytes_by_hand(tmp_path: Path) -> None:
    """Three rows of 3 entries, worked out on paper: width 2, so a step of 2/65535 and ln Σ of (0, -1, -2)."""
    tokens = np.array([[0, 1, 2, 0, 1, 2, 0, 1]], np.int32)
    rows = np.array([[[5, 4, 3], [1, 1, 1], [40, 20, -np.inf]]], np.float32)
    path = tmp_path / "a.kld"
    assert write_kld(path, Logits(Chunks(tokens, False, -1), rows)) == path.stat().st_size == 20 + 32 + 3 * 16
    content = path.read_bytes()
    assert content[:8] == b"_logits_"
    assert struct.unpack_from("<Iii8i", content, 8) == (8, 3, 1, 0, 1, 2, 0, 1, 2, 0, 1)
    scale, least, *q = struct.unpack_from("<ff4H", content, 52)
    assert (scale, q) == (np.float32(2) / np.float32(65535), [65535, 32768, 0, 0])
    assert least == pytest.approx(-2 - np.log(1 + np.exp(-1) + np.exp(-2)), abs=1e-7)
    scale, least, *q = struct.unpack_from("<ff4H", content, 68)
    assert (scale, q) == (0, [0, 0, 0, 0])
    assert least == pytest.approx(-np.log(3), abs=1e-7)
    scale, least, *q = struct.unpack_from("<ff4H", content, 84)
    assert (scale, least, q) == (np.float32(16) / np.float32(65535), -16, [65535, 0, 0, 0])


def test_header_and_padding_of_an_odd_vocabulary(tmp_path: Path) -> None:
    base = some(n_vocab=7)
    write_kld(tmp_path / "a.kld", base)
    with KldFile(tmp_path / "a.kld", bos=3) as read:
        assert (read.n_vocab, read.chunks.n_ctx, read.chunks.n_chunks) == (7, 8, 2)
        assert np.array_equal(read.chunks.tokens, base.chunks.tokens)
        assert read.chunks.as_computed()[:, 0].tolist() == [3, 3]
        assert read.stored_bytes == (tmp_path / "a.kld").stat().st_size == 20 + 4 * 16 + 2 * 3 * 2 * (8 + 4)
    with KldFile(tmp_path / "a.kld", bos=None) as read:
        assert np.array_equal(read.chunks.as_computed(), base.chunks.tokens)


def test_slices_are_the_whole(tmp_path: Path) -> None:
    write_kld(tmp_path / "a.kld", some(n_ctx=21, spread=9))
    with KldFile(tmp_path / "a.kld", bos=None) as read:
        whole = read.logits(1, 0, 10)
        assert np.array_equal(np.concatenate([read.logits(1, i, 1) for i in range(10)]), whole)
        assert np.array_equal(np.concatenate([read.logits(1, 0, 7), read.logits(1, 7, 3)]), whole)


def test_what_lies_below_the_cut_is_not_known_but_for_the_target(tmp_path: Path) -> None:
    tokens = np.array([[0, 0, 0, 0, 0, 0, 2, 0]], np.int32)  # targets of the rows: 0, 2, 0
    row = np.array([30, 20, 13, 14.5, -50], np.float32)
    write_kld(tmp_path / "a.kld", Logits(Chunks(tokens, False, -1), np.tile(row, (1, 3, 1))))
    with KldFile(tmp_path / "a.kld", bos=None) as read:
        values = read.logits(0, 0, 3)
        assert read.targets_cut == 1
    assert np.isneginf(values).tolist() == [[False, False, True, False, True]] * 1 + [
        [False, False, False, False, True],
        [False, False, True, False, True],
    ]
    assert values[1, 2] == pytest.approx(-16, abs=1e-3)
    assert values[0, 3] == pytest.approx(-15.5, abs=1e-3)


def test_a_copy_of_a_copy_is_the_copy(tmp_path: Path) -> None:
    for spread in (0.0, 1.0, 12.0):
        write_kld(tmp_path / "a.kld", some(n_vocab=50, n_ctx=16, spread=spread))
        with KldFile(tmp_path / "a.kld", bos=None) as first:
            again = encode_rows(first.logits(0, 0, 7))
            with KldFile(tmp_path / "a.kld", bos=None) as raw:
                units = raw._read(0, 0, 7)
        assert np.abs(again[:, 4:].astype(int) - units[:, 4:]).max() <= 1


def test_nan_logits_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    for fault in (np.nan, np.inf):
        base = some()
        base.values[1, 2, 3] = fault
        with pytest.raises(BaseError, match=r"a\.kld\[chunk 1, position 6\]: base logits are not finite"):
            write_kld(tmp_path / "a.kld", base)
    base.values[1, 2] = -np.inf
    with pytest.raises(BaseError, match="not finite"):
        write_kld(tmp_path / "a.kld", base)
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_chunks(tmp_path: Path) -> None:
    seen: list[tuple[str, float, float | None]] = []
    write_kld(tmp_path / "a.kld", some(), lambda p: seen.append((p.stage, p.done, p.total)))
    assert seen == [("kld", 1, 2), ("kld", 2, 2)]


def test_is_kld_goes_by_content_or_name(tmp_path: Path) -> None:
    for name, content, expected in (
        ("logits.bin", b"_logits_...", True),
        ("empty.kld", b"", True),
        ("model.gguf", b"GGUF", False),
    ):
        (tmp_path / name).write_bytes(content)
        assert is_kld(tmp_path / name) is expected
    assert not is_kld(tmp_path)
    assert not is_kld(tmp_path / "missing.kld")
    with pytest.raises(FileProblem, match="no such file"):
        KldFile(tmp_path / "missing.kld", bos=None)


def test_measuring_against_a_file(tmp_path: Path) -> None:
    """A candidate against the file of another engine's logits: nearly what it is against the logits themselves."""
    engine, candidate = FakeEngine(n_vocab=97), FakeEngine(n_vocab=97, noise=0.1)
    tokens = np.arange(64, dtype=np.int32).reshape(2, 32) % 97
    chunks = Chunks(tokens, True, engine.facts.bos)
    rows = [r.values for r in engine.evaluate(chunks.as_computed(), "logits")]  # type: ignore[arg-type]
    base = Logits(chunks, np.concatenate(rows).reshape(2, 15, 97))
    write_kld(tmp_path / "a.kld", base)
    exact = measure(candidate, base, threads=1)
    with KldFile(tmp_path / "a.kld", bos=engine.facts.bos) as file:
        read = measure(candidate, file, threads=1)
    assert exact.metrics.kld.mean() > 1e-3
    np.testing.assert_allclose(read.metrics.kld, exact.metrics.kld, rtol=1e-2)
    np.testing.assert_allclose(read.metrics.nll_base, exact.metrics.nll_base, atol=16 / 65535)
    np.testing.assert_allclose(read.metrics.nll, exact.metrics.nll, rtol=1e-9)
    with (
        pytest.raises(MismatchError, match="vocabulary differs"),
        KldFile(tmp_path / "a.kld", bos=None) as file,
    ):
        measure(FakeEngine(n_vocab=98), file, threads=1)


def test_partial_metrics_by_hand() -> None:
    """Base (1/2, 1/4, ?, ?) with 1/4 left out; candidate (1/4, 1/2, 1/8, 1/8): within the two, 2:1 against 1:2."""
    base = np.array([[np.log(0.5), np.log(0.25), -np.inf, -np.inf]], np.float32)
    cand = np.log(np.array([[0.25, 0.5, 0.125, 0.125]], np.float32))
    found = partial_metrics(base, cand, np.array([1], np.int32), threads=1)
    kl = 2 / 3 * np.log(2) - 1 / 3 * np.log(2)
    m = np.array([0.5, 0.5])
    js = sum(0.5 * np.sum(x * np.log(x / m)) for x in (np.array([2, 1]) / 3, np.array([1, 2]) / 3))
    assert found.kld[0] == pytest.approx(0.75 * kl, rel=1e-6)
    assert found.js[0] == pytest.approx(0.75 * js, rel=1e-6)
    assert found.nll_base[0] == pytest.approx(np.log(4), rel=1e-6)
    assert found.p_base[0] == pytest.approx(0.25, rel=1e-6)
    assert found.p[0] == pytest.approx(0.5, rel=1e-6)
    assert found.kld_reverse[0] == np.inf
    assert found.nonfinite[0] == LEFT_OUT
    assert not found.same_top[0]


def test_partial_metrics_of_a_whole_distribution_are_the_metrics() -> None:
    rng = np.random.default_rng(3)
    base, cand = rng.standard_normal((2, 6, 40)).astype(np.float32) * 3
    base -= np.log(np.exp(base.astype(np.float64)).sum(axis=1, keepdims=True)).astype(np.float32)
    targets = rng.integers(0, 40, 6, np.int32)
    part, whole = partial_metrics(base, cand, targets, threads=1), token_metrics(base, cand, targets)
    assert part.nonfinite.tolist() == [0] * 6
    for name in ("kld", "js", "kld_reverse", "nll", "nll_base", "p", "p_base"):
        np.testing.assert_allclose(getattr(part, name), getattr(whole, name), rtol=2e-6, err_msg=name)


def test_partial_metrics_do_not_depend_on_how_the_unknown_is_masked() -> None:
    """A candidate with a -inf of its own, where the base knows nothing, is measured as one without that entry."""
    rng = np.random.default_rng(4)
    logs, cand = rng.standard_normal((2, 5, 30)).astype(np.float32)
    logs[:, 20:] = -np.inf
    logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
    targets = rng.integers(0, 20, 5, np.int32)
    finite = partial_metrics(
        logs, np.where(np.arange(30) == 29, -200, cand).astype(np.float32), targets, threads=1
    )
    masked = partial_metrics(
        logs, np.where(np.arange(30) == 29, -np.inf, cand).astype(np.float32), targets, threads=1
    )
    for name in ("kld", "js", "nll", "nll_base", "entropy", "entropy_base", "nonfinite", "kld_reverse"):
        np.testing.assert_allclose(getattr(masked, name), getattr(finite, name), rtol=1e-7, err_msg=name)


def test_partial_metrics_keep_the_candidates_faults() -> None:
    base = np.array([[np.log(0.5), np.log(0.5), -np.inf]], np.float32)
    cand = np.array([[0, np.nan, 0]], np.float32)
    found = partial_metrics(base, cand, np.array([0], np.int32), threads=1)
    assert found.nonfinite[0] & 3 == 2
    assert np.isnan(found.kld[0])
