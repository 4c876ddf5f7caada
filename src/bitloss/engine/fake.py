"""An engine without a model: small, seeded, deterministic. Public, for tests of whatever stands on an engine.

Hidden state of a position = mean of a fixed random embedding over the tokens so far; logits = a fixed random matrix
times that. Causal, so every law that holds for a language model's interface (rows depend on earlier tokens only, chunks
are independent) holds here.
"""

from __future__ import annotations

from collections.abc import Generator
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from bitloss.engine.base import EngineFacts, Observer, Outputs, Rows, TokenRole
from bitloss.model.text import scored_positions


class FakeEngine:
    """Stands in for `bitloss.engine.llama.LlamaEngine`.

    Args:
        n_vocab: entries of the vocabulary; token i of a text is the code point modulo this.
        n_embd: width of the hidden state.
        seed: seeds the weights.
        noise: size of a seeded perturbation of the output weight, to make a "candidate" of a "base".
        micro_batch: rows yielded at a time.
    """

    weight = "blk.0.ffn_down.weight"

    def __init__(
        self, *, n_vocab: int = 97, n_embd: int = 32, seed: int = 0, noise: float = 0.0, micro_batch: int = 8
    ) -> None:
        rng = np.random.default_rng(seed)
        self.embedding = rng.standard_normal((n_vocab, n_embd)).astype(np.float32)
        self.output = rng.standard_normal((n_vocab, n_embd)).astype(np.float32)
        self.output += np.float32(noise) * np.random.default_rng(seed + 1).standard_normal(
            self.output.shape
        ).astype(np.float32)
        self.micro_batch = micro_batch
        self._facts = EngineFacts("fake", n_vocab, n_embd, 1, 4096, 0, 1, add_bos=True, add_eos=False)

    @property
    def facts(self) -> EngineFacts:
        """What a real engine would say of its model."""
        return self._facts

    def tokenize(self, text: str, *, rendered: bool = False) -> NDArray[np.int32]:
        """BOS (not before a rendered text), then one token per character."""
        characters = [ord(c) % self._facts.n_vocab for c in text]
        return np.array(characters if rendered else [self._facts.bos, *characters], np.int32)

    def token_text(self, token: int) -> bytes:
        """The character of that number."""
        return chr(token).encode()

    def token_role(self, token: int) -> TokenRole:
        """A line's end ends a turn."""
        return TokenRole.END if token == ord("\n") else TokenRole.TEXT

    def evaluate(
        self,
        chunks: NDArray[np.int32],
        outputs: Outputs,
        observer: Observer | None = None,
        *,
        scored: NDArray[np.bool_] | None = None,
    ) -> Generator[Rows, None, None]:
        """See `bitloss.engine.base.Engine.evaluate`."""
        n_ctx = chunks.shape[1]
        for index, chunk in enumerate(chunks):
            total = np.cumsum(self.embedding[chunk], axis=0, dtype=np.float64)
            hidden = (total / np.arange(1, n_ctx + 1)[:, None]).astype(np.float32)
            if observer is not None and observer.wants(self.weight):
                observer.dense(self.weight, hidden[None])
            if outputs is Outputs.NOTHING:
                yield Rows(index, 0, np.empty((0, 0), np.float32))
                continue
            positions = (
                np.asarray(scored_positions(n_ctx)) if scored is None else np.flatnonzero(scored[index])
            )
            for run in np.split(positions, np.flatnonzero(np.diff(positions) != 1) + 1):
                for at in range(0, len(run), self.micro_batch):
                    rows = hidden[run[at : at + self.micro_batch]]
                    values = rows if outputs is Outputs.HIDDEN else rows @ self.output.T
                    yield Rows(index, int(run[at]), values)

    def close(self) -> None:
        """Nothing to free."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
