"""How much of one text occurs in another: windows of 32 tokens they share.

A window is 32 tokens that follow one another; a stream of n tokens has n - 31 of them. Counted are the windows of the
first streams that occur anywhere in the second. Windows are compared by a 64-bit hash, and every hit token by token:
the count is exact.

    hash of a window t_0 .. t_31 = Σ (t_i + 1) · B^(31 - i)  mod 2^64

Memory: 16 bytes a token of the second text, 8 of the first. 32 tokens are about 20 words: long enough that two texts
seldom share them unless one was copied from the other, or both from a third.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

WINDOW: Final = 32
_BASE: Final = np.uint64(0x9E3779B97F4A7C15)  # odd, bits well mixed


class Shared(NamedTuple):
    """What `shared_windows` counted.

    Attributes:
        windows: windows of the first text.
        shared: those of them that occur in the second.
    """

    windows: int
    shared: int


def shared_windows(
    text: Sequence[NDArray[np.int32]], other: Sequence[NDArray[np.int32]], *, window: int = WINDOW
) -> Shared:
    """Count windows of a text that occur in another.

    Args:
        text: streams of tokens, int32 [n] each; no window reaches from one into the next.
        other: streams of tokens it may have been copied from.
        window: tokens of a window.
    """
    theirs = _Index.of(other, window)
    windows = shared = 0
    for stream in text:
        n = len(stream) - window + 1
        if n > 0:
            windows += n
            shared += int(np.count_nonzero(theirs.holds(stream)))
    return Shared(windows, shared)


class _Index(NamedTuple):
    """Windows of a text in order of their hashes: hash uint64 [n], and the token each starts at [n]."""

    tokens: NDArray[np.int32]
    hashes: NDArray[np.uint64]
    starts: NDArray[np.int64]
    window: int

    @classmethod
    def of(cls, streams: Sequence[NDArray[np.int32]], window: int) -> _Index:
        long = [stream for stream in streams if len(stream) >= window]
        tokens = np.concatenate(long) if long else np.empty(0, np.int32)
        hashes, starts, at = [], [], 0
        for stream in long:
            hashes.append(_hashes(stream, window))
            starts.append(np.arange(at, at + len(hashes[-1])))
            at += len(stream)
        if not long:
            return cls(tokens, np.empty(0, np.uint64), np.empty(0, np.int64), window)
        hash_, start = np.concatenate(hashes), np.concatenate(starts)
        order = np.argsort(hash_, kind="stable")
        hash_, start = hash_[order], start[order]
        # of neighbours that are the same window one is enough
        kept = np.ones(len(hash_), np.bool_)
        twins = np.flatnonzero(hash_[1:] == hash_[:-1])
        kept[twins + 1] = ~_equal(tokens, start[twins + 1], tokens, start[twins], window)
        return cls(tokens, hash_[kept], start[kept], window)

    def holds(self, stream: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Whether each window of a stream is in here: bool [len(stream) - window + 1]."""
        mine = _hashes(stream, self.window)
        found = np.zeros(len(mine), np.bool_)
        at = np.searchsorted(self.hashes, mine)
        todo = np.arange(len(mine))
        while True:
            todo = todo[at[todo] < len(self.hashes)]
            todo = todo[self.hashes[at[todo]] == mine[todo]]
            if not len(todo):
                return found
            same = _equal(stream, todo, self.tokens, self.starts[at[todo]], self.window)
            found[todo[same]] = True
            # another window of the same hash: look at the next one
            todo = todo[~same]
            at[todo] += 1


def _hashes(tokens: NDArray[np.int32], window: int) -> NDArray[np.uint64]:
    n = len(tokens) - window + 1
    values = tokens.astype(np.uint64) + np.uint64(1)
    total = np.zeros(n, np.uint64)
    for i in range(window):
        total *= _BASE
        total += values[i : i + n]
    return total


def _equal(
    a: NDArray[np.int32], at_a: NDArray[np.int64], b: NDArray[np.int32], at_b: NDArray[np.int64], window: int
) -> NDArray[np.bool_]:
    """Whether the windows of a at ``at_a`` [n] are those of b at ``at_b`` [n], token by token."""
    same = np.ones(len(at_a), np.bool_)
    for i in range(window):
        same &= a[at_a + i] == b[at_b + i]
    return same
