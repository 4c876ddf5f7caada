"""Q4_0, Q4_1, Q5_0, Q5_1, Q8_0: blocks of 32 weights with one scale, the "_1" with a minimum as well.

| kind | block                                        | value of a quant q      |
|------|----------------------------------------------|-------------------------|
| Q4_0 | half d, 16 bytes of quants                   | (q - 8)·d               |
| Q4_1 | half d, half m, 16 bytes                     | q·d + m                 |
| Q5_0 | half d, 4 bytes of fifth bits, 16 bytes      | (q - 16)·d              |
| Q5_1 | half d, half m, 4 bytes of fifth bits, 16    | q·d + m                 |
| Q8_0 | half d, 32 signed bytes                      | q·d                     |

Byte j holds quant j in its low and quant j + 16 in its high four bits; bit j of the fifth bits (little endian)
belongs to quant j.

**Encoding without importance weights.** Q4_0, Q5_0: d = M / -2^(bits - 1), M the value of the largest magnitude
(the first of equals), q = trunc(x/d + 2^(bits-1) + 0.5) at most 2^bits - 1. Q4_1, Q5_1: m = min x,
d = (max - m) / (2^bits - 1), q = trunc((x - m)/d + 0.5). Q8_0: d = max |x| / 127, q = round(x/d), halves away
from zero. Division by d is multiplication by 1/d in float32, with 0 for 1/0; d itself is rounded to a half only
when stored.

**Encoding with importance weights w** (Q8_0 ignores them). The error of x counts w·√(σ² + x²), σ² = Σ x² / n over
the whole row of n. Q4_0, Q5_0: see `symmetric_search`. Q4_1, Q5_1: see `affine_search`.

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
    low_byte,
    nearest_int,
    sum_in_order,
    truncate,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BLOCK: Final = 32
BLOCK_BYTES: Final = {Kind.Q4_0: 18, Kind.Q4_1: 20, Kind.Q5_0: 22, Kind.Q5_1: 24, Kind.Q8_0: 34}
_LEVELS: Final = {Kind.Q4_0: 16, Kind.Q4_1: 16, Kind.Q5_0: 32, Kind.Q5_1: 32}
_SYMMETRIC: Final = frozenset({Kind.Q4_0, Kind.Q5_0})

_one = np.float32(1)
_half = np.float32(0.5)


def _encode(kind: Kind, rows: Floats, weights: Floats | None) -> Bytes:
    x = np.ascontiguousarray(rows).reshape(-1, BLOCK)
    with np.errstate(all="ignore"):
        if kind == Kind.Q8_0:
            blocks = _encode_q8_0(x)
        elif kind in _SYMMETRIC:
            d, q = _symmetric_plain(x, _LEVELS[kind]) if weights is None else _symmetric(kind, rows, weights)
            blocks = _pack(kind, q, d)
        else:
            d, m, q = _affine_plain(x, _LEVELS[kind]) if weights is None else _affine(kind, rows, weights)
            blocks = _pack(kind, q, d, m)
    return blocks.reshape(len(rows), -1)


def _decode(kind: Kind, data: Bytes, n_per_row: int) -> Floats:
    blocks = np.ascontiguousarray(data).reshape(-1, BLOCK_BYTES[kind])
    d = _halves(blocks, 0)
    with np.errstate(all="ignore"):
        if kind == Kind.Q8_0:
            x = blocks[:, 2:].view(np.int8).astype(np.float32) * d
        elif kind in _SYMMETRIC:
            x = (_quants(kind, blocks, 2) - _LEVELS[kind] // 2).astype(np.float32) * d
        else:
            x = _quants(kind, blocks, 4).astype(np.float32) * d + _halves(blocks, 2)
    return x.reshape(len(data), n_per_row)


# --- searches ----------------------------------------------------------------------------------------


def symmetric_search(x: Floats, weights: Floats, top: int) -> tuple[Floats, Ints]:
    """Scale and quants (0 .. 2·top - 1) of least weighted error, of 19 scales tried.

    For a try k in -9..9 let s = -(top + k/10) / M, q = nearest(s·x) cut to [-top, top - 1]. With
    A = Σ w·x·q and B = Σ w·q², the best scale for these quants is A/B and its error Σ w·x² - A²/B. The try 0 is
    taken first; another replaces the best so far if A² > best·B, where best = A²/B of that one, as float32 gives it.

    Args:
        x: [n_blocks, size].
        weights: [n_blocks, size].
        top: 2^(bits - 1).

    Returns:
        The scale [n_blocks] (0 for a block of zeros) and quants [n_blocks, size].
    """
    amax, largest = first_largest(x)

    def quants(s: Floats) -> Ints:
        return np.clip(nearest_int(s[:, None] * x), -top, top - 1)

    def sums(q: Ints) -> tuple[Floats, Floats]:
        qf = q.astype(np.float32)
        return sum_in_order(weights * x * qf), sum_in_order(weights * qf * qf)

    found = quants(np.float32(-top) / largest)
    a, b = sums(found)
    scale = np.where(b != 0, a / b, np.float32(0))
    best = scale * a
    for k in range(-9, 10):
        if k == 0:
            continue
        tried = quants(-(np.float32(top) + np.float32(0.1) * np.float32(k)) / largest)
        a, b = sums(tried)
        better = (b > 0) & (a * a > best * b)
        found = np.where(better[:, None], tried, found)
        scale = np.where(better, a / b, scale)
        best = np.where(better, scale * a, best)
    zeros = amax < ALMOST_ZERO
    scale = np.where(zeros, np.float32(0), scale)
    return scale, np.where(zeros[:, None], 0, found + top)


def affine_search(x: Floats, weights: Floats, top: int) -> tuple[Floats, Floats, Ints]:
    """Scale, minimum and quants (0 .. top) of least weighted error, of 38 tried.

    Start: m = min(0, min x), 1/d = top / (max x - m), q = nearest((x - m)/d) cut to [0, top]. For a try k in 0..36,
    1/d = (top - 0.9 + k/20) / (max x - m) with the minimum found so far, q likewise; the line through these quants
    by weighted least squares gives d and m, or d alone where m would be positive. It replaces the best if its
    Σ w·(d·q + m - x)² is less.

    Args:
        x: [n_blocks, size].
        weights: [n_blocks, size].
        top: 2^bits - 1.

    Returns:
        Scale [n_blocks], minimum [n_blocks] (0 or negative), quants [n_blocks, size].
    """
    low, high = x[:, 0], x[:, 0]
    for column in x.T[1:]:
        low, high = np.where(column < low, column, low), np.where(column > high, column, high)
    sum_w = sum_in_order(weights)
    sum_x: Floats = np.add.accumulate(weights * x, axis=1, dtype=np.float32)[:, -1]  # not from +0
    low = np.where(low > 0, np.float32(0), low)
    flat, flat_low = high <= low, low

    def quants(inverse_scale: Floats, minimum: Floats) -> tuple[Ints, Floats]:
        q = np.clip(nearest_int(inverse_scale[:, None] * (x - minimum[:, None])), 0, top)
        return q, q.astype(np.float32)

    def error(qf: Floats, d: Floats, m: Floats) -> Floats:
        difference = d[:, None] * qf + m[:, None] - x
        return sum_in_order(weights * (difference * difference))

    start: Floats = np.float32(top) / (high - low)
    scale: Floats = _one / start
    found, qf = quants(start, low)
    least = error(qf, scale, low)
    for k in range(37):
        steps = np.float32(-0.9) + np.float32(0.05) * np.float32(k) + np.float32(top)
        tried, qf = quants(steps / (high - low), low)
        wq = weights * qf
        s1, s2, sx = sum_in_order(wq), sum_in_order(wq * qf), sum_in_order(wq * x)
        determinant = sum_w * s2 - s1 * s1
        d: Floats = np.divide(sum_w * sx - sum_x * s1, determinant)
        m: Floats = np.divide(s2 * sum_x - s1 * sx, determinant)
        positive = m > 0
        d, m = np.where(positive, sx / s2, d), np.where(positive, np.float32(0), m)
        e = error(qf, d, m)
        better = (determinant > 0) & (e < least)
        found = np.where(better[:, None], tried, found)
        scale, low, least = np.where(better, d, scale), np.where(better, m, low), np.where(better, e, least)
    scale, low = np.where(flat, np.float32(0), scale), np.where(flat, flat_low, low)
    return scale, low, np.where(flat[:, None], 0, found)


# --- encoders ----------------------------------------------------------------------------------------


def _symmetric_plain(x: Floats, levels: int) -> tuple[Floats, Ints]:
    d = first_largest(x)[1] / np.float32(-(levels // 2))
    shifted = x * inverse(d)[:, None] + np.float32(levels // 2 + 0.5)
    return d, np.minimum(levels - 1, low_byte(truncate(shifted)))


def _affine_plain(x: Floats, levels: int) -> tuple[Floats, Floats, Ints]:
    largest = np.finfo(np.float32).max
    low, high = np.full(len(x), largest), np.full(len(x), -largest)
    for column in x.T:
        low, high = np.where(column < low, column, low), np.where(column > high, column, high)
    d = (high - low) / np.float32(levels - 1)
    q = low_byte(truncate((x - low[:, None]) * inverse(d)[:, None] + _half))
    return d, low, np.minimum(15, q) if levels == 16 else q


def _symmetric(kind: Kind, rows: Floats, weights: Floats) -> tuple[Floats, Ints]:
    return symmetric_search(rows.reshape(-1, BLOCK), _weights(rows, weights), _LEVELS[kind] // 2)


def _affine(kind: Kind, rows: Floats, weights: Floats) -> tuple[Floats, Floats, Ints]:
    return affine_search(rows.reshape(-1, BLOCK), _weights(rows, weights), _LEVELS[kind] - 1)


def _weights(rows: Floats, weights: Floats) -> Floats:
    n_blocks = rows.shape[1] // BLOCK
    sigma2 = sum_in_order(rows * rows) / np.float32(rows.shape[1])
    importance = np.tile(weights.reshape(n_blocks, BLOCK), (len(rows), 1))
    return block_weights(rows.reshape(-1, BLOCK), importance, np.repeat(sigma2, n_blocks))


def _encode_q8_0(x: Floats) -> Bytes:
    d = first_largest(x)[0] / np.float32(127)
    scaled = x * inverse(d)[:, None]
    whole = np.trunc(scaled)
    rounded = whole + np.where(np.abs(scaled - whole) >= _half, np.copysign(_one, scaled), np.float32(0))
    q = low_byte(truncate(rounded)).astype(np.int8).view(np.uint8)
    return np.concatenate([_half_bytes(d), q], axis=1)


# --- bytes -------------------------------------------------------------------------------------------


def _half_bytes(x: Floats) -> Bytes:
    return half_bits(x).astype("<u2")[:, None].view(np.uint8)


def _halves(blocks: Bytes, at: int) -> Floats:
    return from_half(np.ascontiguousarray(blocks[:, at : at + 2]).view("<u2").astype(np.uint16))


def _pack(kind: Kind, q: Ints, *halves: Floats) -> Bytes:
    nibbles: Bytes = (q & 15).astype(np.uint8)
    parts: list[Bytes] = [_half_bytes(h) for h in halves]
    if _LEVELS[kind] == 32:
        parts.append(np.packbits((q >> 4 & 1).astype(bool), axis=1, bitorder="little"))
    parts.append(nibbles[:, :16] | nibbles[:, 16:] << np.uint8(4))
    return np.concatenate(parts, axis=1)


def _quants(kind: Kind, blocks: Bytes, at: int) -> Ints:
    nibbles = blocks[:, -16:]
    q = np.concatenate([nibbles & 15, nibbles >> 4], axis=1).astype(np.int32)
    if _LEVELS[kind] == 32:
        q += np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little").astype(np.int32) << 4
    return q


ENCODERS: Mapping[Kind, Callable[[Floats, Floats | None], Bytes]] = {
    kind: functools.partial(_encode, kind) for kind in BLOCK_BYTES
}
DECODERS: Mapping[Kind, Callable[[Bytes, int], Floats]] = {
    kind: functools.partial(_decode, kind) for kind in BLOCK_BYTES
}
