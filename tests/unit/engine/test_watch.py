"""An interrupt during a computation: it must not be lost in the callback that Python is called by."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from bitloss.engine.llama import LlamaEngine
from bitloss.engine.watch import GraphWatch
from bitloss.model.random_model import RandomShape, random_gguf

SHAPE = RandomShape(n_vocab=300, n_embd=64, n_layer=2, n_head=2, n_head_kv=1, head_dim=32, n_ff=64)
TOKENS = np.arange(3, 19, dtype=np.int32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return random_gguf(tmp_path / "m.gguf", SHAPE, seed=5, dtype="f32")


@pytest.mark.parametrize("at", [1, 2, 5, 30])
def test_an_interrupt_before_the_first_line_of_the_callback_is_raised(
    model: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """There Python acts on a signal, outside of any `try` of the callback."""
    callback, calls = GraphWatch.callback, [0]

    def interrupted(self: GraphWatch, address: int, ask: bool, other: object) -> bool:
        calls[0] += 1
        if calls[0] == at:
            raise KeyboardInterrupt
        return callback(self, address, ask, other)

    with LlamaEngine(model) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(GraphWatch, "callback", interrupted)
            with pytest.raises(KeyboardInterrupt):
                engine.hidden_and_logits(TOKENS)
        assert calls[0] >= at
        hidden, _ = engine.hidden_and_logits(TOKENS)  # what follows is as ever
    with LlamaEngine(model) as engine:
        np.testing.assert_array_equal(hidden, engine.hidden_and_logits(TOKENS)[0])


def test_errors_of_others_are_told_as_before(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: told.append(what.exc_type))
    with LlamaEngine(model) as engine:
        engine.hidden_and_logits(TOKENS)
        engine.hidden_and_logits(TOKENS)

    class Broken:
        def __del__(self) -> None:
            raise ValueError

    Broken()
    assert told == [ValueError]
