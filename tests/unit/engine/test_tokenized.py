"""Long texts are tokenized once for a vocabulary."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from bitloss.engine import tokenized
from bitloss.engine.llama import LlamaEngine
from bitloss.engine.tokenized import WORTH_KEEPING, remembered, vocabulary_key
from bitloss.model.gguf import GgufFile
from bitloss.model.random_model import RandomShape, random_gguf

SHAPE = RandomShape(n_vocab=300, n_embd=32, n_layer=1, n_head=2, n_head_kv=1, head_dim=16, n_ff=32)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files whose vocabulary libllama was asked to tokenize with, in turn; nothing is kept from before."""
    asked: list[Path] = []
    tokenize = LlamaEngine._tokenize

    def counted(self: LlamaEngine, data: bytes, rendered: bool) -> object:
        asked.append(self.path)
        return tokenize(self, data, rendered)

    monkeypatch.setattr(LlamaEngine, "_tokenize", counted)
    monkeypatch.setattr(tokenized, "_tokens", type(tokenized._tokens)())
    return asked


def test_files_of_one_vocabulary_share_the_tokens_of_a_long_text(tmp_path: Path, calls: list[Path]) -> None:
    one = random_gguf(tmp_path / "a.gguf", SHAPE, seed=1, dtype="f32")
    other = random_gguf(tmp_path / "b.gguf", SHAPE, seed=1, dtype="f16")
    text = "a few words, " * (WORTH_KEEPING // 8)
    with LlamaEngine(one) as engine:
        first = engine.tokenize(text)
        kept = first.copy()
        first[:] = 0  # what was handed out is the caller's
    with LlamaEngine(other) as engine:
        assert np.array_equal(engine.tokenize(text), kept)
        assert calls == [one]
        assert np.array_equal(engine.tokenize(text, rendered=True), kept[1:] if kept[0] == 1 else kept)
        assert calls == [one, other]
        engine.tokenize(text[1:])
        assert calls == [one, other, other]


def test_short_texts_are_not_kept(tmp_path: Path, calls: list[Path]) -> None:
    with LlamaEngine(random_gguf(tmp_path / "a.gguf", SHAPE, seed=1)) as engine:
        engine.tokenize("word")
        engine.tokenize("word")
    assert len(calls) == 2


def test_another_vocabulary_has_another_key(tmp_path: Path) -> None:
    def key(name: str, shape: RandomShape, dtype: Literal["f32", "f16"] = "f32") -> bytes:
        return vocabulary_key(GgufFile.open(random_gguf(tmp_path / name, shape, seed=1, dtype=dtype)))

    one = key("a", SHAPE)
    assert key("b", SHAPE, "f16") == one
    assert key("c", replace(SHAPE, n_vocab=301)) != one


def test_only_some_texts_are_kept(calls: list[Path]) -> None:
    made: list[int] = []

    def ask(i: int) -> int:
        def make() -> np.ndarray[tuple[int], np.dtype[np.int32]]:
            made.append(i)
            return np.array([i], np.int32)

        return int(remembered("vocabulary", str(i).encode(), make)[0])

    assert [ask(i) for i in (0, 1, 2, 3, 0, 4, 0, 1)] == [0, 1, 2, 3, 0, 4, 0, 1]
    assert made == [0, 1, 2, 3, 4, 1]
