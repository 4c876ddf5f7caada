"""Counting weights with the native kernels: the same as `bitloss.explain.weights`, only sooner.

A kernel knows what most values add without looking at each of them: words of F16 and BF16, and float32 values that are
such, are counted one by one only where one of them breaks a record (`native/audit_words.hpp`). What these tell is added
at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitloss import _native
from bitloss.errors import MismatchError
from bitloss.explain.weights import (
    EXPONENTS,
    WORDS,
    CastTally,
    Counts,
    Floats,
    Tally,
    WordTable,
)

Words = npt.NDArray[np.uint16]
_INFINITY_BITS = 0x7F800000
_PIECE = 1 << 24  # values a call counts


Scratch = npt.NDArray[np.uint32]


def isas() -> list[str]:
    """Instruction sets this machine and build offer, best first."""
    return [isa for isa in _native.audit_isas() if isa != "wide"]


def scratch_for(threads: int) -> Scratch:
    """Return what a `Counter` counts odd words in: zeros, and zeros again after every piece."""
    return np.zeros((2 * threads, WORDS), np.uint32)


@dataclass(slots=True)
class BlockTally:
    """Blocks of one type that get other bytes when their weights are cast before they are encoded.

    Attributes:
        blocks: how many there are, those that are not finite left out.
        not_finite: blocks with a value that is NaN or infinite.
        f16: blocks that F16 changes, those that overflow among them.
        f16_overflowed: blocks with a value that F16 makes infinite.
        bf16: likewise for BF16.
        bf16_overflowed: likewise.
    """

    blocks: int = 0
    not_finite: int = 0
    f16: int = 0
    f16_overflowed: int = 0
    bf16: int = 0
    bf16_overflowed: int = 0

    def add(self, other: BlockTally) -> None:
        """Add what another one counts."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Counter:
    """Counts values, piece by piece.

    Attributes:
        q8_0: what blocks of Q8_0 came to; zeros unless asked for.

    Args:
        table: of the type of the words that are counted; None for float32.
        blocks: compare blocks of Q8_0 too; then pieces are of whole blocks.
        threads: worker threads, at least 1.
        isa: of `isas`; "auto" takes the best, "wide" is for tests.
        scratch: of `scratch_for` as many threads, to be used by one counter at a time; None makes it anew, which
            takes as long as counting some megabytes.

    Raises:
        MismatchError: this machine lacks ``isa``.
    """

    def __init__(
        self,
        table: WordTable | None,
        *,
        blocks: bool = False,
        threads: int = 1,
        isa: str = "auto",
        scratch: Scratch | None = None,
    ) -> None:
        if isa not in ("auto", *_native.audit_isas()):
            raise MismatchError(
                "instruction set not available here", expected=", ".join(_native.audit_isas()), found=isa
            )
        self.q8_0 = BlockTally()
        self._of = table
        self._scratch = scratch_for(threads) if scratch is None else scratch
        self._odd: list[tuple[WordTable, tuple[Words, Counts]]] = []
        self._sum = Tally()
        self._count: Callable[[npt.NDArray[Any]], None] = self._floats if table is None else self._words
        self._blocks, self._threads, self._isa = blocks, threads, isa

    def add(self, values: npt.NDArray[Any]) -> None:
        """Count a vector: uint16 words of the table's type, or float32.

        Raises:
            MismatchError: it is no such vector.
        """
        _check(values, np.float32 if self._of is None else np.uint16)
        for at in range(0, values.size, _PIECE):
            self._count(values[at : at + _PIECE])

    def tally(self) -> Tally:
        """Return what was counted so far."""
        total = self._sum
        for table, odd in self._odd:
            total += table.tally_of(*odd)
        return total

    def _words(self, words: Words) -> None:
        histogram = np.zeros(EXPONENTS, np.int64)
        table = self._of
        assert table is not None
        odd, values, zeros, below, changed, blocks = _native.audit_words(
            table is WordTable.f16(), words, self._scratch, histogram, self._blocks, self._threads, self._isa
        )
        self._odd.append((table, odd))
        self._sum += Tally(
            values=values, zeros=zeros, below=below, bf16=CastTally(changed=changed), histogram=histogram
        )
        self._add_blocks(blocks)

    def _floats(self, values: Floats) -> None:
        histogram = np.zeros(EXPONENTS, np.int64)
        f16, bf16, n, zeros, below, above, nans, up, down, largest, smallest, in_f16, in_bf16, blocks = (
            _native.audit_floats(values, self._scratch, histogram, self._blocks, self._threads, self._isa)
        )
        self._odd += [(WordTable.f16(), f16), (WordTable.bf16(), bf16)]
        self._sum += Tally(
            values=n,
            zeros=zeros,
            below=below,
            above=above,
            nans=nans,
            positive_infinities=up,
            negative_infinities=down,
            largest=_from_bits(largest) if largest else None,
            smallest=_from_bits(smallest) if smallest < _INFINITY_BITS else None,
            f16=CastTally(*in_f16),
            bf16=CastTally(*in_bf16),
            histogram=histogram,
        )
        self._add_blocks(blocks)

    def _add_blocks(self, of: tuple[int, int, tuple[int, int], tuple[int, int]]) -> None:
        blocks, not_finite, f16, bf16 = of
        self.q8_0.add(BlockTally(blocks - not_finite, not_finite, *f16, *bf16))


def tally_words(table: WordTable, words: Words, *, threads: int = 1, isa: str = "auto") -> Tally:
    """Count F16 or BF16 values, uint16 [n]; arguments and errors as `Counter`."""
    counter = Counter(table, threads=threads, isa=isa)
    counter.add(words)
    return counter.tally()


def tally_floats(values: Floats, *, threads: int = 1, isa: str = "auto") -> Tally:
    """Count float32 values [n]; arguments and errors as `Counter`."""
    counter = Counter(None, threads=threads, isa=isa)
    counter.add(values)
    return counter.tally()


def marks_of_words(table: WordTable, words: Words, block: int, *, threads: int = 1) -> npt.NDArray[np.uint8]:
    """Return what some value of each block does (flags of `bitloss.explain.weights`): uint8 [n / block]."""
    _check(words, np.uint16)
    marks = np.empty(words.size // block, np.uint8)
    _native.mark_words(words, table.flags, block, marks, threads)
    return marks


def marks_of_floats(
    values: Floats, block: int, *, threads: int = 1, isa: str = "auto"
) -> npt.NDArray[np.uint8]:
    """Return what some value of each block does, as `marks_of_words`."""
    _check(values, np.float32)
    marks = np.empty(values.size // block, np.uint8)
    _native.mark_floats(values, block, marks, threads, isa)
    return marks


def _from_bits(bits: int) -> float:
    return float(np.array([bits], np.uint32).view(np.float32)[0])


def _check(array: npt.NDArray[np.generic], dtype: type[np.generic]) -> None:
    if array.ndim != 1 or array.dtype != dtype or not array.flags.c_contiguous:
        raise MismatchError(
            "values to count",
            expected=f"a contiguous vector of {np.dtype(dtype)}",
            found=f"{array.dtype} {list(array.shape)}",
        )
