"""IQ4_NL and IQ4_XS: sixteen levels of unequal distance, one scale for 32 weights.

| kind   | weights | block                                                                          |
|--------|---------|--------------------------------------------------------------------------------|
| IQ4_NL | 32      | half d, 16 bytes of quants                                                     |
| IQ4_XS | 256     | half d, 2 bytes of high scale bits, 4 bytes of low ones, 8 · 16 bytes of quants |

Byte j of a group's 16 holds quant j in its low and quant j + 16 in its high four bits; a quant is an index of
`LEVELS`. IQ4_NL: x = d·level. IQ4_XS: group g has a scale of six bits l, its low four in byte g/2 (even groups in
the low half), its high two at bit 2g of the high bits (little endian); x = (d·(l - 32))·level.

**Encoding.** The error of x counts u = w·√(σ² + x²) with importance weights w, σ² = 2·mean x² over the block, and
u = x² without. Each group of 32 searches its scale: with M the value of largest magnitude (the first of equals) and
1/s = 1/(M/127) negated, then (k - 127)/M for k in -7..7, every x/s takes its nearest level v; A = Σ u·v·x, B = Σ u·v²;
the best scale for these is A/B, and a try replaces the best if A² > best·B, best being A²/B as float32 gives it.
IQ4_NL takes the nearest levels for that scale. IQ4_XS takes d = -S/32, S the group scale of largest magnitude,
l = nearest(scale/d) in [-32, 31], and the nearest levels of x/(d·l). A group whose largest magnitude is below 1e-15
has scale 0. A value in the middle of two levels takes the upper.

Equal to ggml_quantize_chunk and to_float of libggml, byte for byte (ggml/src/ggml-quants.c). Input must be finite.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

import numpy as np
from gguf import GGMLQuantizationType as Kind

from bitloss.quantize.reference.arithmetic import (
    ALMOST_ZERO,
    Bytes,
    Floats,
    Ints,
    block_weights,
    first_largest,
    from_half,
    half_bits,
    inverse,
    nearest_int,
    sum_in_order,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LEVELS: Final = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)
GROUP: Final = 32
SIZE: Final = {Kind.IQ4_NL: 32, Kind.IQ4_XS: 256}
BLOCK_BYTES: Final = {Kind.IQ4_NL: 18, Kind.IQ4_XS: 136}

# The middles are exact, and so are the distances to both levels next to them: comparing x with the middle decides
# as comparing the two distances does.
_MIDDLES: Final = (LEVELS[1:] + LEVELS[:-1]) / 2
_TRIES: Final = 7


def nearest_level(x: Floats) -> Ints:
    """Index of the level next to x, the upper one in the middle of two; NaN takes the last."""
    return np.searchsorted(_MIDDLES, x, side="right").astype(np.int32)


def _encode(kind: Kind, rows: Floats, weights: Floats | None) -> Bytes:
    size = SIZE[kind]
    rows = np.ascontiguousarray(rows)
    x = rows.reshape(-1, size)
    groups = rows.reshape(-1, GROUP)
    with np.errstate(all="ignore"):
        if weights is None:
            u = groups * groups
        else:
            sigma2 = sum_in_order(x * x) * (np.float32(2) / np.float32(size))
            importance = np.tile(weights.reshape(-1, GROUP), (len(rows), 1))
            u = block_weights(groups, importance, np.repeat(sigma2, size // GROUP))
        scales = scale_search(groups, u)
        blocks = _pack_nl(x, scales) if kind == Kind.IQ4_NL else _pack_xs(x, scales.reshape(-1, 8))
    return blocks.reshape(len(rows), -1)


def scale_search(x: Floats, u: Floats) -> Floats:
    """Scale [n_groups] of least weighted error; see the module's head. x, u: [n_groups, 32]."""
    amax, largest = first_largest(x)

    def sums(inverse_scale: Floats) -> tuple[Floats, Floats]:
        v = LEVELS[nearest_level(inverse_scale[:, None] * x)]
        return sum_in_order(u * v * x), sum_in_order(u * v * v)

    a, b = sums(np.float32(1) / (-largest / LEVELS[0]))
    scale = np.where(b > 0, a / b, np.float32(0))
    best = scale * a
    for k in range(-_TRIES, _TRIES + 1):
        a, b = sums((np.float32(k) + LEVELS[0]) / largest)
        better = (b > 0) & (a * a > best * b)
        scale = np.where(better, a / b, scale)
        best = np.where(better, scale * a, best)
    return np.where(amax < ALMOST_ZERO, np.float32(0), scale)


def _decode(kind: Kind, data: Bytes, n_per_row: int) -> Floats:
    blocks = np.ascontiguousarray(data).reshape(-1, BLOCK_BYTES[kind])
    d = from_half(np.ascontiguousarray(blocks[:, :2]).view("<u2").astype(np.uint16))
    if kind == Kind.IQ4_XS:
        high = np.ascontiguousarray(blocks[:, 2:4]).view("<u2").astype(np.int32) >> 2 * np.arange(8) & 3
        low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=2).reshape(-1, 8)
        with np.errstate(all="ignore"):
            d = d * ((low | high << 4) - 32).astype(np.float32)
    quants = blocks[:, -SIZE[kind] // 2 :].reshape(-1, 16)
    levels = LEVELS[np.concatenate([quants & 15, quants >> 4], axis=1)]
    with np.errstate(all="ignore"):
        x: Floats = d.reshape(-1, 1) * levels
    return x.reshape(len(data), n_per_row)


def _quants(x: Floats, inverse_scale: Floats) -> Bytes:
    q = nearest_level(inverse_scale[:, None] * x).astype(np.uint8)
    return q[:, :16] | q[:, 16:] << np.uint8(4)


def _pack_nl(x: Floats, scales: Floats) -> Bytes:
    d = half_bits(scales).astype("<u2")[:, None].view(np.uint8)
    return np.concatenate([d, _quants(x, inverse(scales))], axis=1)


def _pack_xs(x: Floats, scales: Floats) -> Bytes:
    d = -first_largest(scales)[1] / np.float32(32)
    l = np.clip(nearest_int(inverse(d)[:, None] * scales), -32, 31)  # noqa: E741
    group_scale = (d[:, None] * l.astype(np.float32)).reshape(-1)
    quants = _quants(x.reshape(-1, GROUP), inverse(group_scale)).reshape(len(x), 128)
    low, high = (l + 32 & 15).astype(np.uint8), (l + 32 >> 4).astype(np.uint16)
    high_bits = np.bitwise_or.reduce(high << 2 * np.arange(8, dtype=np.uint16), axis=1)
    return np.concatenate(
        [
            half_bits(d).astype("<u2")[:, None].view(np.uint8),
            high_bits.astype("<u2")[:, None].view(np.uint8),
            low[:, ::2] | low[:, 1::2] << 4,
            quants,
        ],
        axis=1,
    )


ENCODERS: Mapping[Kind, Callable[[Floats, Floats | None], Bytes]] = {
    kind: functools.partial(_encode, kind) for kind in SIZE
}
DECODERS: Mapping[Kind, Callable[[Bytes, int], Floats]] = {
    kind: functools.partial(_decode, kind) for kind in SIZE
}
