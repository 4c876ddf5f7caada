"""What the encoders have in common, as libggml computes it (ggml-impl.h, ggml-quants.c), in float32.

Blocks are rows of an array [n_blocks, block size]. Values that are not finite are outside the contract of the
encoders; where finite input overflows inside them, infinities and NaN take the same way here as in libggml.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.uint8]

ALMOST_ZERO = np.float32(1e-15)
"""A block whose largest value is below this is encoded as zeros where a scale is searched for."""

_INT_MIN = -(2**31)


def half_bits(x: Floats) -> npt.NDArray[np.uint16]:
    """Float32 to IEEE half, nearest and ties to even; every NaN becomes the quiet one of its sign."""
    bits = x.astype(np.float16).view(np.uint16)
    nan = np.where(np.signbit(x), np.uint16(0xFE00), np.uint16(0x7E00))
    return np.where(np.isnan(x), nan, bits)


def from_half(bits: npt.NDArray[np.uint16]) -> Floats:
    """Half to float32; a signalling NaN becomes quiet and keeps its payload."""
    is_nan = (bits & 0x7FFF) > 0x7C00
    wide = bits.view(np.float16).astype(np.float32).view(np.uint32)
    nan = ((bits & 0x8000).astype(np.uint32) << 16) | 0x7FC00000 | ((bits & 0x3FF).astype(np.uint32) << 13)
    return np.where(is_nan, nan, wide).view(np.float32)


def nearest_int(x: Floats) -> Ints:
    """Nearest integer, ties to even, by adding 1.5·2^23; beyond ±2^22 the low 23 bits of that sum remain."""
    shifted = (x + np.float32(12582912.0)).view(np.int32)
    return (shifted & 0x7FFFFF) - 0x400000


def truncate(x: Floats) -> Ints:
    """Float to int32 toward zero; what does not fit, and NaN, is -2^31, as on x86."""
    fits = np.abs(x) < 2.0**31
    return np.where(fits, np.where(fits, x, 0), _INT_MIN).astype(np.int32)


def low_byte(x: Ints) -> Ints:
    """The signed low byte, as a conversion of a float to int8_t leaves it on x86."""
    return (x & 0xFF).astype(np.uint8).view(np.int8).astype(np.int32)


def first_largest(x: Floats) -> tuple[Floats, Floats]:
    """Largest magnitude of each block, and the first value that has it with its sign; +0 where all are zero."""
    amax = np.zeros(len(x), np.float32)
    value = np.zeros(len(x), np.float32)
    for column in x.T:
        size = np.abs(column)
        value = np.where(size > amax, column, value)
        amax = np.where(size > amax, size, amax)
    return amax, value


def inverse(d: Floats) -> Floats:
    """1/d, and 0 for d = 0."""
    return np.where(d == 0, np.float32(0), np.float32(1) / d)


def sum_in_order(x: Floats) -> Floats:
    """Float32 sum of each row, from left to right, starting from +0 (which makes +0 of a row of -0)."""
    return np.add.accumulate(x, axis=1, dtype=np.float32)[:, -1] + np.float32(0)


def block_weights(x: Floats, importance: Floats, sigma2: Floats) -> Floats:
    """Weight of each value's squared error: importance · √(σ² + x²).

    Args:
        x: [n_blocks, size].
        importance: [n_blocks, size].
        sigma2: [n_blocks].
    """
    return importance * np.sqrt(sigma2[:, None] + x * x)
