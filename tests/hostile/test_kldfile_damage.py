"""Base files of llama-perplexity cut, flipped and made up: a value or one `BitlossError`, never anything else."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from bitloss.divergence.kldfile import KldFile, write_kld
from bitloss.errors import BaseError, BitlossError
from bitloss.model.text import Chunks

N_VOCAB, N_CTX, N_CHUNKS = 11, 8, 2
DATA_AT = 20 + 4 * N_CTX * N_CHUNKS


class Small:
    """A base of random logits, one row of them cut."""

    known_in_part = False
    n_vocab = N_VOCAB
    rows_per_slice = 2

    def __init__(self) -> None:
        rng = np.random.default_rng(5)
        self.chunks = Chunks(rng.integers(0, N_VOCAB, (N_CHUNKS, N_CTX), np.int32), False, -1)
        self.values = rng.standard_normal((N_CHUNKS, 3, N_VOCAB)).astype(np.float32)
        self.values[1] *= 12

    def logits(self, chunk: int, first: int, rows: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return self.values[chunk, first : first + rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("kld") / "whole.kld"
    write_kld(path, Small())
    return path.read_bytes()


def read_or_refuse(path: Path, content: bytes) -> bool:
    """Whether all rows are read; then every row is a distribution."""
    path.write_bytes(content)
    try:
        with KldFile(path, bos=None) as file:
            for chunk in range(file.chunks.n_chunks):
                values = file.logits(chunk, 0, 3)
                assert not np.isnan(values).any()
                assert np.exp(values.astype(np.float64)).sum(axis=1) == pytest.approx(1, abs=1e-3)
    except BitlossError as refusal:
        said = str(refusal)
    else:
        return True
    assert "\n" not in said
    return False


def test_every_cut_is_refused(tmp_path: Path, whole: bytes) -> None:
    assert read_or_refuse(tmp_path / "a.kld", whole)
    for size in range(len(whole)):
        assert not read_or_refuse(tmp_path / "a.kld", whole[:size]), size
    assert not read_or_refuse(tmp_path / "a.kld", whole + b"\0")


def test_every_flipped_bit_of_the_counts_is_refused(tmp_path: Path, whole: bytes) -> None:
    for bit in range(8 * 20):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        assert not read_or_refuse(tmp_path / "a.kld", bytes(flipped)), bit


def test_flipped_bits_elsewhere_give_distributions_or_one_line(tmp_path: Path, whole: bytes) -> None:
    refused = 0
    for bit in range(8 * 20, 8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        refused += not read_or_refuse(tmp_path / "a.kld", bytes(flipped))
    assert refused > 8 * (len(whole) - 20) / 3


def test_random_bytes_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for start in (b"", b"_logits_", b"_logits_" + struct.pack("<Iii", 8, 2, 1)):
        for size in range(0, 100, 3):
            assert not read_or_refuse(tmp_path / "a.kld", start + rng.bytes(size))


def counts(n_ctx: int, n_vocab: int, n_chunks: int) -> bytes:
    return b"_logits_" + struct.pack("<Iii", n_ctx & 0xFFFFFFFF, n_vocab, n_chunks)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"GGUF0000", "not a base file of llama-perplexity"),
        (b"_logits_\x08\0\0\0", r"not a base file|ends inside its header: expected 20 bytes, found 12"),
        (counts(8, 0, 1) + bytes(99), "impossible counts"),
        (counts(8, -1, 1) + bytes(99), "impossible counts"),
        (counts(8, 5, 0) + bytes(99), "impossible counts"),
        (counts(8, 5, -5) + bytes(99), "impossible counts"),
        (counts(2, 5, 1) + bytes(99), "impossible counts"),
        (counts(2**32 - 1, 2**31 - 1, 2**31 - 1) + bytes(99), "cut short or damaged"),
        (counts(512, 131072, 640) + bytes(99), r"cut short.*expected .* bytes.*llama-perplexity leaves such"),
        (counts(8, 5, 1) + bytes(999), "bytes after the end"),
    ],
)
def test_each_header_fault_has_its_name(tmp_path: Path, start: bytes, words: str) -> None:
    (tmp_path / "evil.kld").write_bytes(start)
    with pytest.raises(BaseError, match=words):
        KldFile(tmp_path / "evil.kld", bos=None)


def test_the_other_byte_order_is_named(tmp_path: Path, whole: bytes) -> None:
    swapped = b"_logits_" + struct.pack(">Iii", N_CTX, N_VOCAB, N_CHUNKS) + whole[20:]
    (tmp_path / "be.kld").write_bytes(swapped)
    with pytest.raises(BaseError, match="other byte order"):
        KldFile(tmp_path / "be.kld", bos=None)


def test_tokens_and_bos_are_held_to_the_vocabulary(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "a.kld"
    for token in (-1, N_VOCAB):
        path.write_bytes(whole[:24] + struct.pack("<i", token) + whole[28:])
        with pytest.raises(BaseError, match=rf"\[token 1\]: token outside.*0\.\.10, found {token}"):
            KldFile(path, bos=None)
    path.write_bytes(whole)
    with pytest.raises(BaseError, match=r"BOS is outside the vocabulary"):
        KldFile(path, bos=N_VOCAB)


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (0, struct.pack("<f", float("nan")), "impossible scale"),
        (0, struct.pack("<f", -1e-5), "impossible scale"),
        (0, struct.pack("<f", 1.0), "impossible scale"),
        (4, struct.pack("<f", float("nan")), "impossible log-probability"),
        (4, struct.pack("<f", float("-inf")), "impossible log-probability"),
        (4, struct.pack("<f", 0.0), "impossible log-probability"),
        (4, struct.pack("<f", -40.0), "impossible log-probability"),
        (8, bytes(2 * N_VOCAB), "likeliest token is not at the top"),
        (8, b"\xff" * 2 * N_VOCAB, "do not add up to 1"),
    ],
)
def test_each_damaged_row_is_named(tmp_path: Path, whole: bytes, at: int, value: bytes, words: str) -> None:
    row = DATA_AT + 2 * (12 + 4)  # the second row of the first chunk
    path = tmp_path / "a.kld"
    path.write_bytes(whole[: row + at] + value + whole[row + at + len(value) :])
    with KldFile(path, bos=None) as file:
        file.logits(0, 0, 1)
        with pytest.raises(BaseError, match=rf"\[chunk 0, position 5\]: damaged row: .*{words}"):
            file.logits(0, 0, 3)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "a.kld"
    path.write_bytes(whole)
    with KldFile(path, bos=None) as file:
        path.write_bytes(whole[:-1])
        file.logits(0, 0, 3)
        with pytest.raises(BaseError, match="ends inside its rows"):
            file.logits(1, 0, 3)
