"""From a text to chunks of tokens, as llama-perplexity cuts it.

The text is tokenized whole (BOS first if the vocabulary adds it), cut into n_ctx pieces, the rest left over; in
evaluation the first token of every piece is replaced by BOS when the vocabulary adds BOS. The second half of every
piece is scored. Chunks cut by another rule (`bitloss.model.documents`) say for themselves which tokens are scored.

Source: perplexity() and kl_divergence() in tools/perplexity/perplexity.cpp; a trailing newline is dropped as ``-f`` of
common/arg.cpp does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitloss.display import many
from bitloss.errors import FormatError, TextError, unreadable

LEAST_CONTEXT = 8
"""Shortest chunk that leaves at least two scored positions with context before them."""


@dataclass(frozen=True, slots=True)
class Chunks:
    """A text cut for evaluation.

    Attributes:
        tokens: int32 [n_chunks, n_ctx], as cut (first tokens of chunks are the text's own).
        add_bos: whether BOS takes the place of a chunk's first token in evaluation.
        bos: its id.
        scored: bool [n_chunks, n_ctx], positions whose next token is scored (never the last of a chunk); None for
            llama-perplexity's rule, `scored_positions` of every chunk.
    """

    tokens: NDArray[np.int32]
    add_bos: bool
    bos: int
    scored: NDArray[np.bool_] | None = None

    @property
    def n_chunks(self) -> int:
        """Number of chunks."""
        return int(self.tokens.shape[0])

    @property
    def n_ctx(self) -> int:
        """Tokens in a chunk."""
        return int(self.tokens.shape[1])

    @property
    def sha256(self) -> str:
        """Hash of the tokens as cut (little-endian int32) with their shape and BOS rule."""
        header = f"{self.n_chunks} {self.n_ctx} {self.bos if self.add_bos else -1}\n".encode()
        data = header + np.ascontiguousarray(self.tokens, "<i4").tobytes()
        if self.scored is not None:
            data += b"scored\n" + np.packbits(self.scored).tobytes()
        return hashlib.sha256(data).hexdigest()

    @property
    def rows(self) -> NDArray[np.int64]:
        """Number of scored positions of every chunk: int64 [n_chunks]."""
        if self.scored is None:
            return np.full(self.n_chunks, len(scored_positions(self.n_ctx)), np.int64)
        return np.asarray(np.count_nonzero(self.scored, axis=1), np.int64)

    @property
    def n_scored(self) -> int:
        """Number of tokens scored."""
        return int(self.rows.sum())

    def mask(self) -> NDArray[np.bool_]:
        """Positions whose next token is scored, by whatever rule: bool [n_chunks, n_ctx]."""
        if self.scored is not None:
            return self.scored
        mask = np.zeros(self.tokens.shape, np.bool_)
        positions = scored_positions(self.n_ctx)
        mask[:, positions.start : positions.stop] = True
        return mask

    def row(self, chunk: int, position: int) -> int:
        """Index of a scored position among those of its chunk."""
        if self.scored is None:
            return position - scored_positions(self.n_ctx).start
        return int(np.count_nonzero(self.scored[chunk, :position]))

    def pick(self, which: NDArray[np.int64]) -> Chunks:
        """Some of the chunks, in the order given."""
        scored = None if self.scored is None else np.ascontiguousarray(self.scored[which])
        return Chunks(np.ascontiguousarray(self.tokens[which]), self.add_bos, self.bos, scored)

    def as_computed(self) -> NDArray[np.int32]:
        """The tokens the engine is given: BOS put in where the vocabulary adds it."""
        tokens = self.tokens.copy()
        if self.add_bos:
            tokens[:, 0] = self.bos
        return tokens


def scored_positions(n_ctx: int) -> range:
    """Positions of a chunk that llama-perplexity scores: n_ctx/2 .. n_ctx-2 (255 of 512).

    The first half only gives context; the last position has no next token within the chunk.
    """
    return range(n_ctx // 2, n_ctx - 1)


def join_chunks(parts: Sequence[Chunks]) -> Chunks:
    """Chunks of several texts, one text after the other; all cut alike (n_ctx, BOS, rule)."""
    first = parts[0]
    assert all((p.n_ctx, p.add_bos, p.bos, p.scored is None) == _kind(first) for p in parts)
    if len(parts) == 1:
        return first
    scored = None if first.scored is None else np.concatenate([part.mask() for part in parts])
    return Chunks(np.concatenate([part.tokens for part in parts]), first.add_bos, first.bos, scored)


def _kind(chunks: Chunks) -> tuple[int, bool, int, bool]:
    return chunks.n_ctx, chunks.add_bos, chunks.bos, chunks.scored is None


def read_text(path: Path) -> str:
    """Read a UTF-8 text; one trailing newline is dropped, as llama.cpp's ``-f`` does.

    Raises:
        FileProblem: no such file, or it cannot be read.
        FormatError: not UTF-8; names the byte.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(error, where=path, what="text", mend="give a UTF-8 text file") from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(
            f"not UTF-8 at byte {error.start}", where=path, mend="convert the text to UTF-8 first"
        ) from error
    return text.removesuffix("\n")


def cut_chunks(
    tokens: NDArray[np.int32], *, n_ctx: int, n_chunks: int | None, bos: int | None, where: str
) -> Chunks:
    """Cut tokens into chunks.

    Args:
        tokens: int32 [n] of the whole text.
        n_ctx: tokens in a chunk.
        n_chunks: at most this many; None takes all.
        bos: id of BOS when the vocabulary adds it, else None.
        where: names the text in messages.

    Raises:
        TextError: fewer than two chunks' worth of tokens (llama-perplexity's rule), or n_ctx too small.
    """
    if n_ctx < LEAST_CONTEXT:
        raise TextError("context too short", where="--ctx", expected=f"at least {LEAST_CONTEXT}", found=n_ctx)
    if n_chunks is not None and n_chunks < 1:
        raise TextError("no chunks asked for", where="--chunks", expected="at least 1", found=n_chunks)
    if len(tokens) < 2 * n_ctx:
        raise TextError(
            "text too short",
            where=where,
            expected=f"at least {2 * n_ctx} tokens (two chunks of {n_ctx})",
            found=many(len(tokens), "token"),
            mend="give a longer text or a smaller --ctx",
        )
    count = len(tokens) // n_ctx
    if n_chunks is not None:
        count = min(count, n_chunks)
    cut = np.ascontiguousarray(tokens[: count * n_ctx].reshape(count, n_ctx), np.int32)
    return Chunks(cut, bos is not None, -1 if bos is None else bos)
