"""How far apart two versions of some values are, pair by pair.

For float32 values a and b:

- ``differing``: pairs that are not equal as numbers. +0 and -0 are equal; two NaN are, whatever their bits.
- ``left_out``: pairs in which one is NaN or infinite. They are in no sum; ``a`` and ``b`` count those values by kind.
- ``squares``: Σ (a - b)² and ``largest``: max |a - b| over the other pairs, in float64, so that nothing under- or
  overflows. The order of the sum depends on the instruction set (relative difference below 1e-12), not on threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Kind

from bitloss import _native
from bitloss.errors import MismatchError
from bitloss.model.tensor_types import block_of

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


class Odd(NamedTuple):
    """Values that are not finite: NaN, +infinity, -infinity."""

    nan: int = 0
    up: int = 0
    down: int = 0


_NONE = Odd()


@dataclass(frozen=True, slots=True)
class Distance:
    """What pairs of values tell; see the module for the fields, `values` is how many pairs there are."""

    values: int = 0
    differing: int = 0
    left_out: int = 0
    squares: float = 0.0
    largest: float = 0.0
    a: Odd = _NONE
    b: Odd = _NONE

    def __add__(self, other: Distance) -> Distance:
        return Distance(
            self.values + other.values,
            self.differing + other.differing,
            self.left_out + other.left_out,
            self.squares + other.squares,
            max(self.largest, other.largest),
            Odd(*(x + y for x, y in zip(self.a, other.a, strict=True))),
            Odd(*(x + y for x, y in zip(self.b, other.b, strict=True))),
        )


def distance(a: Floats, b: Floats, *, threads: int = 1, isa: str = "auto") -> Distance:
    """Compare two float32 vectors [n].

    Raises:
        MismatchError: not two vectors of one length, or this machine lacks ``isa``.
    """
    for values in (a, b):
        if values.ndim != 1 or values.dtype != np.float32 or values.shape != a.shape:
            raise MismatchError(
                "values to compare",
                expected="two float32 vectors of one length",
                found=f"{a.dtype} {list(a.shape)}, {b.dtype} {list(b.shape)}",
            )
    if isa not in ("auto", *_native.compare_isas()):
        raise MismatchError(
            "instruction set not available here", expected=", ".join(_native.compare_isas()), found=isa
        )
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    return _distance(a.size, _native.value_distance(a, b, threads, isa))


class Compared(NamedTuple):
    """What two tensors tell.

    Attributes:
        blocks: of one type, how many blocks have other bytes; 0 for two types, as the next two.
        quants: how many quants differ (`bitloss.explain.fields`).
        scales: how many scales differ.
        distance: of the values; blocks with equal bytes are not always among those left out and counted by kind.
    """

    blocks: int
    quants: int
    scales: int
    distance: Distance


def direct(kind: Kind) -> bool:
    """Whether `compare_tensors` takes a type."""
    return kind == Kind.F32 or int(kind) in _native.codec_kinds(encoding=False)


def compare_tensors(
    kinds: tuple[Kind, Kind], a: Bytes, b: Bytes, *, threads: int = 1, isa: str = "auto"
) -> Compared:
    """Compare stored values of types that are `direct`, in one pass over memory.

    Args:
        kinds: types of `a` and of `b`.
        a: uint8, whole blocks.
        b: likewise, with as many values.
        threads: worker threads, at least 1.
        isa: as for `distance`.
    """
    blocks, quants, scales, of = _native.compare_tensors(int(kinds[0]), a, int(kinds[1]), b, threads, isa)
    return Compared(
        blocks, quants, scales, _distance(a.size // _block_bytes(kinds[0]) * _weights(kinds[0]), of)
    )


def _weights(kind: Kind) -> int:
    return block_of(kind).weights


def _block_bytes(kind: Kind) -> int:
    return block_of(kind).bytes


def _distance(
    values: int, of: tuple[int, int, float, float, tuple[int, int, int], tuple[int, int, int]]
) -> Distance:
    differing, left_out, squares, largest, left, right = of
    return Distance(values, differing, left_out, squares, largest, Odd(*left), Odd(*right))


def distance_reference(a: Floats, b: Floats) -> Distance:
    """Compare two float32 vectors: the definition."""
    finite = np.isfinite(a) & np.isfinite(b)
    by = a[finite].astype(np.float64) - b[finite].astype(np.float64)
    return Distance(
        values=a.size,
        differing=int(np.sum((a != b) & ~(np.isnan(a) & np.isnan(b)))),
        left_out=int(a.size - finite.sum()),
        squares=float(np.sum(by * by)),
        largest=float(np.abs(by).max(initial=0.0)),
        a=_odd(a),
        b=_odd(b),
    )


def _odd(values: Floats) -> Odd:
    return Odd(int(np.isnan(values).sum()), int((values == np.inf).sum()), int((values == -np.inf).sum()))
