"""Counting weights with the native kernels: the same as `bitloss.explain.weights`, only sooner."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitloss import _native
from bitloss.errors import MismatchError
from bitloss.explain.weights import (
    EXPONENTS,
    WORDS,
    CastTally,
    Floats,
    Tally,
    WordTable,
)

Words = npt.NDArray[np.uint16]
_INFINITY_BITS = 0x7F800000
_PIECE = 1 << 24  # values a call counts


def isas() -> list[str]:
    """Instruction sets this machine and build offer, best first."""
    return [isa for isa in _native.audit_isas() if isa != "wide"]


def tally_words(table: WordTable, words: Words, *, threads: int = 1) -> Tally:
    """Count F16 or BF16 values.

    Args:
        table: of the type.
        words: the values' bits, uint16 [n].
        threads: worker threads, at least 1.

    Raises:
        MismatchError: not an array of words.
    """
    _check(words, np.uint16)
    counts = np.zeros(WORDS, np.int64)
    for at in range(0, words.size, 2 * _PIECE):
        _native.audit_words(words[at : at + 2 * _PIECE], counts, threads)
    return table.tally(counts)


def tally_floats(values: Floats, *, threads: int = 1, isa: str = "auto") -> Tally:
    """Count float32 values [n]; ``isa`` from `isas`, "auto" takes the best, "wide" is for tests.

    Raises:
        MismatchError: not a float32 vector, or this machine lacks ``isa``.
    """
    _check(values, np.float32)
    if isa not in ("auto", *_native.audit_isas()):
        raise MismatchError(
            "instruction set not available here", expected=", ".join(_native.audit_isas()), found=isa
        )
    words = np.zeros(WORDS, np.int64)
    total = Tally()
    for at in range(0, values.size, _PIECE):
        total += _tally_piece(values[at : at + _PIECE], words, threads, isa)
    return total + WordTable.bf16().tally(words) if words.any() else total


def _tally_piece(values: Floats, words: npt.NDArray[np.int64], threads: int, isa: str) -> Tally:
    """Count what is not counted in ``words``."""
    histogram = np.zeros(EXPONENTS, np.int64)
    before = int(words.sum())
    zeros, below, above, nans, up, down, largest, smallest, f16, bf16 = _native.audit_floats(
        values, words, histogram, threads, isa
    )
    return Tally(
        values=values.size - (int(words.sum()) - before),
        zeros=zeros,
        below=below,
        above=above,
        nans=nans,
        positive_infinities=up,
        negative_infinities=down,
        largest=_from_bits(largest) if largest else None,
        smallest=_from_bits(smallest) if smallest < _INFINITY_BITS else None,
        f16=CastTally(*f16),
        bf16=CastTally(*bf16),
        histogram=histogram,
    )


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
