"""Damaged sources: one clear line, no crash, nothing left behind."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bitloss.errors import BitlossError
from bitloss.model.gguf import GgufFile
from bitloss.model.random_model import RandomShape, random_gguf
from bitloss.quantize.quantize import QuantizeSpec, quantize


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int]:
    """A small model's bytes and where its data begins."""
    shape = RandomShape(n_embd=32, n_head=2, n_head_kv=1, n_ff=32, n_layer=1, n_vocab=259)
    path = random_gguf(tmp_path_factory.mktemp("whole") / "m.gguf", shape, dtype="f32")
    return path.read_bytes(), GgufFile.open(path).data_offset


def quantize_or_refuse(folder: Path, content: bytes) -> bool:
    source, out = folder / "source.gguf", folder / "out.gguf"
    source.write_bytes(content)
    out.unlink(missing_ok=True)
    try:
        quantize(QuantizeSpec(source, "Q4_0", out))
    except BitlossError as error:
        line = str(error)
    else:
        assert out.exists()
        return True
    assert "\n" not in line
    assert sorted(path.name for path in folder.iterdir()) == ["source.gguf"]
    return False


def test_the_whole_file_is_quantized(whole: tuple[bytes, int], tmp_path: Path) -> None:
    assert quantize_or_refuse(tmp_path, whole[0])


def test_cut_anywhere(whole: tuple[bytes, int], tmp_path: Path) -> None:
    content, data = whole
    places = [*range(0, data, 97), *range(data, len(content), 4099), len(content) - 1]
    assert [place for place in places if quantize_or_refuse(tmp_path, content[:place])] == []


def test_flipped_bits_of_the_header(whole: tuple[bytes, int], tmp_path: Path) -> None:
    content, data = whole
    rng = random.Random(0)
    tokens = content.index(b"tokenizer.ggml.tokens"), content.index(b"tokenizer.ggml.bos")
    places = [place for place in range(data) if not tokens[0] + 40 < place < tokens[1]]
    taken = 0
    for place in rng.sample(places, 200):
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.randrange(8)
        taken += quantize_or_refuse(tmp_path, bytes(flipped))
    assert 0 < taken < 200
