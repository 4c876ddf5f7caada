"""The formats in blocks of 32 weights with one scale, in NumPy.

All arrays below are float32 [n_blocks, 32] and every operation is a single one, in the order written. F16 is IEEE half
precision, rounded to nearest, ties to even; it is stored little-endian.

Source: ggml/src/ggml-quants.c (quantize_row_*_ref) and ggml/src/ggml-common.h (struct layouts) of the pinned llama.cpp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_BLOCK = 32
_ONE, _ZERO = np.float32(1), np.float32(0)


def half_bytes(values: Floats) -> Bytes:
    """F16 of values [n], as bytes [n, 2]."""
    return values.astype("<f2").view(np.uint8).reshape(-1, 2)


def round_away(x: Floats) -> npt.NDArray[np.int32]:
    """C's ``(int) roundf(x)``: halves away from zero; 0x80000000 where the result is no int32 (as x86 does)."""
    whole = np.trunc(x)
    rounded = whole + np.where(np.abs(x - whole) >= np.float32(0.5), np.copysign(_ONE, x), _ZERO)
    fits = np.abs(rounded) < np.float32(2**31)
    return np.where(fits, np.where(fits, rounded, _ZERO).astype(np.int32), np.int32(-(2**31)))


def encode_q8_0(rows: Floats, weights: Floats | None) -> Bytes:
    """Q8_0, 34 bytes: F16 d, then 32 int8 q; a weight is d·q.

    d = max |x| / 127 in float32; q = roundf(x · (1 / d)) with that d, not the stored one; d = 0 gives q = 0. Where
    d is so small that 1 / d is infinite, q = 0 (what x86 makes of an infinity in 8 bits). Importance weights are not
    used.
    """
    del weights
    x = np.ascontiguousarray(rows).reshape(-1, _BLOCK)
    with np.errstate(all="ignore"):
        d = np.abs(x).max(axis=1) / np.float32(127)
        inverse = np.where(d != 0, _ONE / d, _ZERO)
        q = round_away(x * inverse[:, None]).astype(np.uint8)
        packed = np.concatenate([half_bytes(d), q], axis=1)
    return packed.reshape(len(rows), -1)


ENCODERS: Mapping[GGMLQuantizationType, Callable[[Floats, Floats | None], Bytes]] = {
    GGMLQuantizationType.Q8_0: encode_q8_0,
}
