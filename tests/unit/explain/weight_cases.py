"""Values to count, and tallies as plain facts."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bitloss import _native
from bitloss.explain.weights import LOWEST_EXPONENT, Tally, WordTable

TABLES = [WordTable.f16(), WordTable.bf16()]
ISAS = ["auto", *_native.audit_isas()]


def floats(*bits: int) -> npt.NDArray[np.float32]:
    return np.array(bits, np.uint32).view(np.float32)


def facts(tally: Tally) -> dict[str, Any]:
    """Everything a tally says, to be compared."""
    named = {name: getattr(tally, name) for name in Tally.__slots__ if name != "histogram"}
    there = np.flatnonzero(tally.histogram)
    return named | {"histogram": {int(i) + LOWEST_EXPONENT: int(tally.histogram[i]) for i in there}}


# Every bound of the definition with its neighbours, both signs.
BOUNDS = [
    *(0x00000000, 0x00000001, 0x00000002, 0x00007FFF, 0x00008000, 0x00008001, 0x00010000, 0x00017FFF),
    *(0x007FFFFF, 0x00800000, 0x00800001, 0x32FFFFFF, 0x33000000, 0x33000001, 0x33800000, 0x33C00000),
    *(
        0x387BA881,
        0x387BA882,
        0x387BA883,
        0x387BA884,
        0x387FFFFF,
        0x38800000,
        0x38800001,
        0x38801000,
        0x38803000,
    ),
    *(0x3F800000, 0x3F801000, 0x3F803000, 0x3F808000, 0x3F818000, 0x477FDFFF, 0x477FE000, 0x477FE001),
    *(0x477FEFFF, 0x477FF000, 0x477FF001, 0x47800000, 0x7F7F0000, 0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF),
    *(0x7F800000, 0x7F800001, 0x7FBFFFFF, 0x7FC00000, 0x7FFF0000, 0x7FFFFFFF),
]
EDGES = floats(*BOUNDS, *(bits | 0x80000000 for bits in BOUNDS))


def by_words(table: WordTable, words: npt.NDArray[np.uint16]) -> dict[str, Any]:
    return facts(table.tally(np.bincount(words, minlength=1 << 16)))
