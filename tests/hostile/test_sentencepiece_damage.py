"""A damaged tokenizer.model ends in one of our errors, or is read: no other exception."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bitloss.convert.cast import SourceType
from bitloss.convert.convert import convert
from bitloss.errors import BitlossError, CheckpointError, UnsupportedError
from bitloss.model.gguf import GgufFile
from bitloss.model.sentencepiece import parse_sentencepiece

CHECKPOINT = Path(__file__).parents[1] / "data" / "checkpoints" / "llama-spm"
WHOLE = (CHECKPOINT / "tokenizer.model").read_bytes()


def shortened(n_pieces: int) -> bytes:
    """Return the model with its first pieces only, and its settings."""
    starts, at = [], 0
    while WHOLE[at] == 0x0A:  # field 1, a piece
        starts.append(at)
        at += 2 + WHOLE[at + 1]
    return WHOLE[: starts[n_pieces]] + WHOLE[at:]


SHORT = shortened(20)


def read(content: bytes) -> str:
    try:
        model = parse_sentencepiece(content, "tokenizer.model")
    except (CheckpointError, UnsupportedError) as error:
        line = str(error)
        return (
            error.what.split("(")[0] if line.startswith("tokenizer.model: ") else f"tokenizer.model? {line}"
        )
    return f"read {len(model.pieces)} pieces"


def test_cut_at_every_byte() -> None:
    outcomes = Counter(read(SHORT[:cut]) for cut in range(len(SHORT)))
    outcomes.update(read(WHOLE[:cut]) for cut in range(0, len(WHOLE), 61))
    # Whole pieces without the trainer's settings are a unigram model, the format's default.
    assert set(outcomes) <= {
        "not a SentencePiece model ",
        "kind of SentencePiece model that cannot be converted here",
        "read 20 pieces",
    }
    assert outcomes["not a SentencePiece model "] > len(SHORT) - 40
    assert outcomes["read 20 pieces"] < 5


def test_every_bit_flipped() -> None:
    outcomes: Counter[str] = Counter()
    for bit in range(8 * len(SHORT)):
        damaged = bytearray(SHORT)
        damaged[bit // 8] ^= 1 << bit % 8
        outcomes[read(bytes(damaged))] += 1
    assert outcomes["read 20 pieces"] > 0  # texts and scores may change
    assert outcomes["not a SentencePiece model "] > 0
    assert not [outcome for outcome in outcomes if "tokenizer.model" in outcome]  # lines that are no message


@pytest.mark.parametrize("name", ["tokenizer.model", "added_tokens.json", "tokenizer_config.json"])
def test_conversion_of_damaged_tokenizers(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "m"
    shutil.copytree(CHECKPOINT, folder)
    good = (folder / name).read_bytes()
    rng = np.random.default_rng(4)
    outcomes: Counter[str] = Counter()
    for bit in rng.integers(0, 8 * len(good), 40).tolist():
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        (folder / name).write_bytes(damaged)
        try:
            convert(folder, [SourceType.F16], tmp_path / "out")
        except BitlossError as error:
            outcomes[error.what] += 1
            assert not list((tmp_path / "out").glob("*"))
            continue
        outcomes["converted"] += 1
        file = GgufFile.open(tmp_path / "out" / "m-f16.gguf")
        assert len(file.value("tokenizer.ggml.tokens")) == 408
        shutil.rmtree(tmp_path / "out")
    assert len(outcomes) > 1
