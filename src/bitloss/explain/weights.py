"""What an audit counts over weights: the definition, in NumPy, and how counts are added up.

Values are float32 (F16 and BF16 widen exactly). Of each:

- NaN, +infinity and -infinity are counted by kind and are in no other count but ``values``.
- ``zeros``: of either sign. ``largest`` and ``smallest``: magnitudes of finite values that are not zero.
- ``below`` and ``above``: how many are not zero and smaller than 6e-5, and how many are larger than 65504. That
  interval is the rule of thumb for F16, whose normal numbers it holds nearly; what really is lost is counted apart:
- for F16 and for BF16, rounded to nearest, ties to even: ``changed`` is how many finite values come back different,
  ``overflowed`` how many of these become infinite (from 65520, from 2^128 - 2^119 on), ``zeroed`` how many become
  zero (up to 2^-25, up to 2^-134). ``error`` is the largest |x - rounded x|, exact in float32, and ``relative`` the
  largest of that over |x|, rounded to float32, both over the values that do not overflow.
- ``histogram``: finite values that are not zero by floor(log2 |x|), from -149 (the least subnormal float32) to 127.

Words of 16 bits have but 65536 values, so a tensor of F16 or BF16 is counted word by word, and everything above
follows from these counts exactly (`WordTable`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, Self

import ml_dtypes
import numpy as np
import numpy.typing as npt

LOWEST_EXPONENT = -149
EXPONENTS = 277
WORDS = 1 << 16
RULE_LOW, RULE_HIGH = 6e-5, 65504.0

Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]

# Flags of what a value does, as the kernels give them for blocks.
F16_CHANGES, F16_OVERFLOWS, BF16_CHANGES, BF16_OVERFLOWS, NOT_FINITE = 1, 2, 4, 8, 16


@dataclass(frozen=True, slots=True)
class CastTally:
    """What rounding to a type does to finite values; see the module for the fields."""

    changed: int = 0
    overflowed: int = 0
    zeroed: int = 0
    error: float = 0.0
    relative: float = 0.0

    def __add__(self, other: CastTally) -> CastTally:
        return CastTally(
            self.changed + other.changed,
            self.overflowed + other.overflowed,
            self.zeroed + other.zeroed,
            max(self.error, other.error),
            max(self.relative, other.relative),
        )


def _no_exponents() -> Counts:
    return np.zeros(EXPONENTS, np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Tally:
    """Counts over values; see the module for the fields. Without a value to be it, largest and smallest are None."""

    values: int = 0
    zeros: int = 0
    below: int = 0
    above: int = 0
    nans: int = 0
    positive_infinities: int = 0
    negative_infinities: int = 0
    largest: float | None = None
    smallest: float | None = None
    f16: CastTally = CastTally()
    bf16: CastTally = CastTally()
    histogram: Counts = field(default_factory=_no_exponents)

    def __add__(self, other: Tally) -> Tally:
        largest = [x for x in (self.largest, other.largest) if x is not None]
        smallest = [x for x in (self.smallest, other.smallest) if x is not None]
        return Tally(
            self.values + other.values,
            self.zeros + other.zeros,
            self.below + other.below,
            self.above + other.above,
            self.nans + other.nans,
            self.positive_infinities + other.positive_infinities,
            self.negative_infinities + other.negative_infinities,
            max(largest, default=None),
            min(smallest, default=None),
            self.f16 + other.f16,
            self.bf16 + other.bf16,
            self.histogram + other.histogram,
        )


def as_f16(values: Floats) -> Floats:
    """Values rounded to F16, as float32."""
    with np.errstate(all="ignore"):
        return values.astype(np.float16).astype(np.float32)


def as_bf16(values: Floats) -> Floats:
    """Values rounded to BF16, as float32."""
    with np.errstate(all="ignore"):
        return values.astype(ml_dtypes.bfloat16).astype(np.float32)


class _Cast:
    """What rounding does to each of some finite values."""

    def __init__(self, values: Floats, rounded: Floats) -> None:
        with np.errstate(all="ignore"):
            self.changed = rounded != values
            self.overflowed = np.isinf(rounded)
            self.zeroed = self.changed & (rounded == 0)
            lossy = self.changed & ~self.overflowed
            error = np.where(lossy, np.abs(values - rounded), np.float32(0))
            self.error = error
            self.relative = np.divide(error, np.abs(values), out=np.zeros_like(error), where=lossy)

    def tally(self, which: Any, times: Counts) -> CastTally:
        return CastTally(
            int(times @ self.changed[which]),
            int(times @ self.overflowed[which]),
            int(times @ self.zeroed[which]),
            float(self.error[which].max(initial=0)),
            float(self.relative[which].max(initial=0)),
        )


class ValueTable:
    """Facts about each of some values, from which a tally follows once it is known how often each occurs.

    Args:
        values: float32 [n].
    """

    def __init__(self, values: Floats) -> None:
        self._finite = np.isfinite(values)
        kept = np.where(self._finite, values, np.float32(0))
        size = np.abs(kept)
        self._size = size
        self._zero = self._finite & (size == 0)
        self._below = (size != 0) & (size.astype(np.float64) < RULE_LOW)
        self._above = size.astype(np.float64) > RULE_HIGH
        self._nan = np.isnan(values)
        self._up, self._down = values == np.inf, values == -np.inf
        self._exponent = np.frexp(size.astype(np.float64))[1] - 1 - LOWEST_EXPONENT
        self._f16, self._bf16 = _Cast(kept, as_f16(kept)), _Cast(kept, as_bf16(kept))

    def tally(self, counts: Counts) -> Tally:
        """Return the tally of values of which value i occurs ``counts[i]`` times."""
        which = np.flatnonzero(counts != 0)  # of flags it is found in a tenth of the time
        return self.tally_of(which, counts[which])

    def tally_of(self, which: npt.NDArray[np.integer[Any]], times: Counts) -> Tally:
        """Return the tally of values of which value ``which[i]`` occurs ``times[i]`` times; one may be there twice."""
        if not which.size:
            return Tally()
        size = self._size[which]
        there = size != 0
        histogram = np.zeros(EXPONENTS, np.int64)
        np.add.at(histogram, self._exponent[which][there], times[there])
        return Tally(
            values=int(times.sum()),
            zeros=int(times @ self._zero[which]),
            below=int(times @ self._below[which]),
            above=int(times @ self._above[which]),
            nans=int(times @ self._nan[which]),
            positive_infinities=int(times @ self._up[which]),
            negative_infinities=int(times @ self._down[which]),
            largest=float(size.max()) if there.any() else None,
            smallest=float(size[there].min()) if there.any() else None,
            f16=self._f16.tally(which, times),
            bf16=self._bf16.tally(which, times),
            histogram=histogram,
        )

    @functools.cached_property
    def flags(self) -> npt.NDArray[np.uint8]:
        """Return what each value does: the flags above, uint8 [n]."""
        flags = np.where(self._finite, 0, NOT_FINITE)
        for cast, changes, overflows in (
            (self._f16, F16_CHANGES, F16_OVERFLOWS),
            (self._bf16, BF16_CHANGES, BF16_OVERFLOWS),
        ):
            flags |= np.where(cast.changed, changes, 0) | np.where(cast.overflowed, overflows, 0)
        return flags.astype(np.uint8)


def tally_reference(values: Floats) -> Tally:
    """Count values: the definition, for any float32 array."""
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    return ValueTable(flat).tally(np.ones(flat.size, np.int64))


class WordTable(ValueTable):
    """All 65536 words of F16 or of BF16.

    Attributes:
        dtype: the type, of two bytes.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        with np.errstate(all="ignore"):
            super().__init__(np.arange(WORDS, dtype=np.uint16).view(dtype).astype(np.float32))

    @classmethod
    @functools.cache
    def f16(cls) -> Self:
        """The words of F16."""
        return cls(np.dtype("<f2"))

    @classmethod
    @functools.cache
    def bf16(cls) -> Self:
        """The words of BF16."""
        return cls(np.dtype(ml_dtypes.bfloat16))
