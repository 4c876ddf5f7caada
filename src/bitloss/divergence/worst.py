"""The tokens on which a candidate is furthest from the base, with what both expected there.

Kept while measuring, because logits are gone afterwards: a token's entry is made when its KL divergence is among the
`KEPT` largest so far, so about KEPT·ln(n/KEPT) rows of a text of n tokens are looked at twice. Ties go to the earlier
token. Rows without a finite KL divergence are no part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

KEPT: Final = 50
"""Tokens kept of each candidate."""
TOP: Final = 5
"""Entries of each distribution that are kept."""
BEFORE: Final = 60
"""Tokens of text kept before the one that is predicted."""
AFTER: Final = 12
"""Tokens kept after it."""

Logits = NDArray[np.float32]


class WorstToken(BaseModel):
    """One token and its surroundings."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    chunk: int = Field(ge=0)
    """Index of the chunk, as in the table beside it."""
    position: int = Field(ge=0)
    """Position within the chunk whose next token is predicted."""
    kld: float
    """KL divergence in nats."""
    first: int = Field(ge=0)
    """Position of the first of `tokens`."""
    tokens: tuple[int, ...]
    """The text around it; the token predicted is at position + 1."""
    base: tuple[tuple[int, float], ...]
    """The base's likeliest entries, likeliest first: id and probability."""
    candidate: tuple[tuple[int, float], ...]
    """The candidate's."""


class Worst(BaseModel):
    """The worst tokens of one candidate, worst first, and the words of every id in them."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    tokens: tuple[WorstToken, ...] = ()
    pieces: dict[int, str] = {}
    """What each id stands for; bytes that are no UTF-8 are written ``\\xNN``."""

    def spelled(self, piece: Callable[[int], bytes]) -> Worst:
        """With the words of its ids, asked from `piece`."""
        ids = {i for t in self.tokens for i in (*t.tokens, *(each for each, _ in (*t.base, *t.candidate)))}
        spelled = {i: piece(i).decode("utf-8", "backslashreplace") for i in sorted(ids)}
        return self.model_copy(update={"pieces": spelled})

    def moved(self, chunk: Mapping[int, int]) -> Worst:
        """With its chunks numbered otherwise."""
        moved = tuple(t.model_copy(update={"chunk": chunk[t.chunk]}) for t in self.tokens)
        return self.model_copy(update={"tokens": moved})

    @classmethod
    def join(cls, parts: Sequence[Worst]) -> Worst:
        """The worst of several parts of a text."""
        tokens = sorted((t for part in parts for t in part.tokens), key=_rank)[:KEPT]
        pieces = {i: word for part in parts for i, word in part.pieces.items()}
        return cls(tokens=tuple(tokens), pieces=pieces)


def _rank(token: WorstToken) -> tuple[float, int, int]:
    return (-token.kld, token.chunk, token.position)


class Rows(NamedTuple):
    """Consecutive scored rows of one chunk.

    Attributes:
        chunk: its index.
        text: int32 [n_ctx], its tokens.
        position: of the first row.
        kld: float64 [rows].
    """

    chunk: int
    text: NDArray[np.int32]
    position: int
    kld: NDArray[np.float64]


class WorstKeeper:
    """Keeps the worst tokens of a candidate while they come by."""

    def __init__(self) -> None:
        self._kept: list[WorstToken] = []

    def look(self, rows: Rows, base: Logits, candidate: Logits) -> None:
        """See some rows.

        Args:
            rows: where they are, and their divergence.
            base: float32 [rows, n_vocab].
            candidate: float32 [rows, n_vocab].
        """
        finite = np.where(np.isfinite(rows.kld), rows.kld, -1.0)
        least = self._kept[-1].kld if len(self._kept) == KEPT else 0.0
        found = np.flatnonzero(finite > least)
        if not len(found):
            return
        found = found[np.argsort(-finite[found], kind="stable")][:KEPT]
        made = [self._entry(rows, int(i), base[i], candidate[i]) for i in found]
        self._kept = sorted([*self._kept, *made], key=_rank)[:KEPT]

    @staticmethod
    def _entry(rows: Rows, i: int, base: Logits, candidate: Logits) -> WorstToken:
        position = rows.position + i
        first = max(0, position + 1 - BEFORE)
        return WorstToken(
            chunk=rows.chunk,
            position=position,
            kld=float(rows.kld[i]),
            first=first,
            tokens=tuple(rows.text[first : position + 2 + AFTER].tolist()),
            base=likeliest(base),
            candidate=likeliest(candidate),
        )

    @property
    def worst(self) -> Worst:
        """What was kept so far."""
        return Worst(tokens=tuple(self._kept))


def likeliest(logits: Logits, count: int = TOP) -> tuple[tuple[int, float], ...]:
    """Ids and probabilities of the largest logits [n_vocab], largest first; the lower id wins a tie."""
    left = np.array(logits, np.float32)
    ids = []
    for _ in range(min(count, len(left))):  # a look for the largest is 20 times as fast as a partition
        ids.append(int(left.argmax()))
        left[ids[-1]] = -np.inf
    mass = np.subtract(logits, logits[ids[0]], dtype=np.float64)
    np.exp(mass, out=mass)
    total = float(mass.sum())
    return tuple((i, float(mass[i]) / total) for i in dict.fromkeys(ids))
