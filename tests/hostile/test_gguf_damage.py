"""A GGUF file cut anywhere or with flipped bits ends in one of our errors, or reads: no other exception."""

from __future__ import annotations

import mmap
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest

from bitloss.errors import BitlossError
from bitloss.model.gguf import GgufFile
from bitloss.model.random_model import RandomShape, random_gguf

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    shape = RandomShape(n_vocab=259, n_embd=8, n_layer=1, n_head=1, n_head_kv=1, head_dim=2, n_ff=8)
    return random_gguf(tmp_path_factory.mktemp("gguf") / "a.gguf", shape).read_bytes()


def read_all(path: Path, content: bytes) -> str:
    """Open from memory (thousands of files would be slow), use everything; return the outcome."""
    try:
        if not content:
            path.write_bytes(content)
            file = GgufFile.open(path)
        else:
            file = GgufFile(path, memoryview(content))
        file.tensors_sha256()
        for name in file.tensors:
            file.tensor_f32(name)
        _ = file.architecture
        _ = file.bits_per_weight()
    except BitlossError as error:
        return error.what if str(path) in str(error) else "a message that does not name the file"
    return "read"


def test_cut_at_every_byte_of_the_header(small: bytes, tmp_path: Path) -> None:
    whole = GgufFile(tmp_path, memoryview(small))
    end = max(info.offset + info.n_bytes for info in whole.tensors.values())
    cuts = [*range(whole.data_offset + 1), *range(whole.data_offset, end, 97)]
    outcomes = Counter(read_all(tmp_path / "x", small[:cut]) for cut in cuts)
    assert outcomes["read"] == outcomes["a message that does not name the file"] == 0
    assert len(outcomes) < 30


def test_every_bit_of_the_structure_flipped(small: bytes, tmp_path: Path) -> None:
    header = GgufFile(tmp_path, memoryview(small)).data_offset
    rng = np.random.default_rng(1)
    # All bits up to the vocabulary and of the tensor list; of the token strings between them a sample.
    tokens = small.index(b"tokenizer.ggml.tokens")
    tensors = small.index(b"token_embd.weight") - 8
    bits = [*range(8 * (tokens + 48)), *range(8 * tensors, 8 * header)]
    bits += rng.integers(8 * tokens, 8 * tensors, 1000).tolist()
    outcomes: Counter[str] = Counter()
    for bit in bits:
        damaged = bytearray(small)
        damaged[bit // 8] ^= 1 << bit % 8
        outcomes[read_all(tmp_path / "x", bytes(damaged))] += 1
    assert outcomes["read"] > 100
    assert outcomes["a message that does not name the file"] == 0
    assert len(outcomes) > 10


def test_random_bytes_written_over_the_header(small: bytes, tmp_path: Path) -> None:
    header = GgufFile(tmp_path, memoryview(small)).data_offset
    rng = np.random.default_rng(2)
    outcomes: Counter[str] = Counter()
    for _ in range(1500):
        damaged = bytearray(small)
        at, n = int(rng.integers(4, header - 8)), int(rng.choice([1, 4, 8]))
        damaged[at : at + n] = rng.choice([b"\xff", b"\x00", b"\x80"]) * n
        outcomes[read_all(tmp_path / "x", bytes(damaged))] += 1
    assert sum(outcomes.values()) == 1500
    assert outcomes["read"] < 1500


def test_an_open_file_maps_and_does_not_copy(small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(small)
    file = GgufFile.open(path)
    data = file.tensor_bytes("output.weight")
    assert not data.flags.writeable
    assert isinstance(file.tensor_f32("output_norm.weight").base, np.ndarray | memoryview | mmap.mmap)
    del file
    assert data.sum() == np.frombuffer(small, np.uint8)[-(len(data) + -len(data) % 32) :][: len(data)].sum()
