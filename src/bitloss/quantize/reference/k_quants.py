"""Q2_K, Q3_K, Q4_K, Q5_K and Q6_K in NumPy: super-blocks of 256 weights, sub-blocks of 16 or 32 with a scale each.

Rows are float32 [n_rows, n_per_row], weights float32 [n_per_row] or None. Every operation is a single one in float32,
in the order written; sums go through a block in order. The scales of the sub-blocks are quantized themselves, by F16
numbers d (and dmin) of the super-block, and the weights are then quantized once more with the scales as stored; a
sub-block whose stored scale makes 0 keeps the q of its search. F16 is rounded to nearest, ties to even, little-endian.

With weights the importance of a weight x in a column of weight v is v·√(m + x²), m = 2·Σx² / 256 over the super-block
(Q2_K: without the 2; Q6_K: v itself).

Source: ggml/src/ggml-quants.c (quantize_row_q*_K_ref, quantize_row_q*_K_impl), ggml/src/ggml-common.h (struct layouts)
of the pinned llama.cpp.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType

from bitloss.quantize.reference.k_fit import (
    NO_SCALE,
    ONE,
    ZERO,
    AffineFit,
    AffineSearch,
    Floats,
    Ints,
    f32,
    fit_affine,
    fit_by_turns,
    fit_positive,
    fit_symmetric,
    nearest_int,
    ordered_sum,
    peak,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Bytes = npt.NDArray[np.uint8]

_SUPER = 256


def _super_blocks(rows: Floats, weights: Floats | None) -> tuple[Floats, Floats | None]:
    """Rows and, for each, its columns' weights as [n_super, 256]."""
    x = np.ascontiguousarray(rows).reshape(-1, _SUPER)
    if weights is None:
        return x, None
    return x, np.broadcast_to(weights, rows.shape).reshape(-1, _SUPER)


def _importance(x: Floats, columns: Floats, factor: int) -> Floats:
    """columns·√(factor·Σx² / 256 + x²), [n_super, 256]."""
    mean = f32(factor) * ordered_sum(x * x) / f32(_SUPER)
    return columns * np.sqrt(mean[:, None] + x * x)


def _half(values: Floats) -> tuple[Bytes, Floats]:
    """F16 of values [n]: as bytes [n, 2] and as float32."""
    half = values.astype("<f2")
    return half.view(np.uint8).reshape(-1, 2), half.astype(np.float32)


def _bytes(values: Ints) -> Ints:
    """What a byte keeps."""
    return values & 255


def _split(x: Floats, size: int) -> Floats:
    """[n_super, 256] as sub-blocks [n_super·256/size, size]."""
    return x.reshape(-1, size)


def _requantize(x: Floats, scales: Floats, mins: Floats, searched: Ints, nmax: int) -> Ints:
    """Give q = round((x + min) / scale) limited to [0, nmax], per sub-block; where scale = 0 the search's."""
    q = np.clip(nearest_int((x + mins[:, None]) / scales[:, None]), 0, nmax)
    return np.where((scales == 0)[:, None], searched, q)


def _requantize_symmetric(x: Floats, scales: Floats, searched: Ints, nmax: int) -> Ints:
    """Give q = nmax + round(x / scale) limited to [0, 2·nmax - 1]; where scale = 0 the search's."""
    q = np.clip(nearest_int(x / scales[:, None]), -nmax, nmax - 1) + nmax
    return np.where((scales == 0)[:, None], searched, q)


def _by_largest(values: Floats, levels: int) -> tuple[Floats, Ints]:
    """Quantize scales or minima [n_super, n] by their largest: largest / levels, and round(levels·v / largest)."""
    top = np.maximum(ZERO, values.max(axis=1))
    some = top > 0
    factor = np.where(some, f32(levels) / top, ZERO)
    q = nearest_int(factor[:, None] * values)
    return np.where(some, top / f32(levels), ZERO), _bytes(q)


def encode_q4_k(rows: Floats, weights: Floats | None, nmax: int = 15) -> Bytes:
    """Q4_K, 144 bytes: F16 d, F16 dmin, 12 bytes of scales and minima, 128 bytes of q; a weight is d·s·q - dmin·m.

    Sub-blocks of 32; q in [0, 15], s and m in [0, 63]. With weights: `fit_affine` in 37 steps of 0.05 from -0.9, s and
    m by `fit_positive` with the sub-block's importance (Q5_K: limited to 63 once more, for a search that ends on a
    negative scale leaves a byte above it). Without: importance √(Σx² / 32) + |x|, 21 steps of 0.1 from -1
    (Q5_K: 16 from -0.5), s and m by the largest.

    The twelve bytes: s₀…s₃ and m₀…m₃ in six bits, above them the two high bits of s₄…s₇ and m₄…m₇, whose low four bits
    are the last four bytes, s below m. Bytes of q: sub-blocks 2k and 2k+1 share 32 bytes, the first in the low half.
    """
    x, columns = _super_blocks(rows, weights)
    blocks = _split(x, 32)
    if columns is not None:
        w = _split(_importance(x, columns, 2), 32)
        fit = fit_affine(blocks, w, AffineSearch(nmax, -0.9, 0.05, 36))
        sums = ordered_sum(w).reshape(-1, 8)
        d, s = fit_positive(fit.scale.reshape(-1, 8), sums, 63)
        dmin, m = fit_positive(fit.minimum.reshape(-1, 8), sums, 63)
        if nmax == 31:
            s, m = np.minimum(63, s), np.minimum(63, m)
    else:
        w = np.sqrt(ordered_sum(blocks * blocks) / f32(32))[:, None] + np.abs(blocks)
        search = AffineSearch(15, -1, 0.1, 20) if nmax == 15 else AffineSearch(31, -0.5, 0.1, 15)
        fit = fit_affine(blocks, w, search)
        d, s = _by_largest(fit.scale.reshape(-1, 8), 63)
        dmin, m = _by_largest(fit.minimum.reshape(-1, 8), 63)
        s, m = np.minimum(63, s), np.minimum(63, m)
    first = _bytes(s[:, :4] | (s[:, 4:] >> 4 << 6))
    second = _bytes(m[:, :4] | (m[:, 4:] >> 4 << 6))
    third = (s[:, 4:] & 15) | ((m[:, 4:] & 15) << 4)
    s = np.concatenate([first & 63, (third & 15) | (first >> 6 << 4)], axis=1)
    m = np.concatenate([second & 63, (third >> 4) | (second >> 6 << 4)], axis=1)
    d_bytes, d = _half(d)
    dmin_bytes, dmin = _half(dmin)
    scales = (d[:, None] * s.astype(np.float32)).reshape(-1)
    mins = (dmin[:, None] * m.astype(np.float32)).reshape(-1)
    q = _requantize(blocks, scales, mins, fit.q, nmax).reshape(-1, 4, 2, 32)
    low = ((q[:, :, 0] & 15) | ((q[:, :, 1] & 15) << 4)).reshape(-1, 128)
    parts: list[npt.NDArray[Any]] = [d_bytes, dmin_bytes, first, second, third]
    if nmax == 31:
        shifts = np.arange(8, dtype=np.int32)[None, :, None]
        parts.append(_merged(q.reshape(-1, 8, 32) >> 4 << shifts, 1))
    return _joined(rows, [*parts, low])


def encode_q5_k(rows: Floats, weights: Floats | None) -> Bytes:
    """Q5_K, 176 bytes: as Q4_K with q in [0, 31]; 32 bytes before the low bits hold the fifth, bit j sub-block j's."""
    return encode_q4_k(rows, weights, nmax=31)


def encode_q2_k(rows: Floats, weights: Floats | None) -> Bytes:
    """Q2_K, 84 bytes: 16 of s (low half) and m, 64 of q, F16 d, F16 dmin; a weight is d·s·q - dmin·m.

    Sub-blocks of 16; q in [0, 3], s and m in [0, 15]. With weights: 37 steps of 0.05 from -0.9, s and m by
    `fit_positive`. Without: importance |x|, errors by their size, 16 steps of 0.1 from -0.5, s and m by the largest.
    """
    x, columns = _super_blocks(rows, weights)
    blocks = _split(x, 16)
    if columns is not None:
        w = _split(_importance(x, columns, 1), 16)
        fit: AffineFit = fit_affine(blocks, w, AffineSearch(3, -0.9, 0.05, 36))
        sums = ordered_sum(w).reshape(-1, 16)
        d, s = fit_positive(fit.scale.reshape(-1, 16), sums, 15)
        dmin, m = fit_positive(fit.minimum.reshape(-1, 16), sums, 15)
    else:
        fit = fit_affine(blocks, np.abs(blocks), AffineSearch(3, -0.5, 0.1, 15, absolute=True))
        d, s = _by_largest(fit.scale.reshape(-1, 16), 15)
        dmin, m = _by_largest(fit.minimum.reshape(-1, 16), 15)
    both = _bytes(s | (m << 4))
    d_bytes, d = _half(d)
    dmin_bytes, dmin = _half(dmin)
    scales = (d[:, None] * (both & 15).astype(np.float32)).reshape(-1)
    mins = (dmin[:, None] * (both >> 4).astype(np.float32)).reshape(-1)
    q = _requantize(blocks, scales, mins, fit.q, 3)
    return _joined(rows, [both, _two_bits(q), d_bytes, dmin_bytes])


def encode_q3_k(rows: Floats, weights: Floats | None) -> Bytes:
    """Q3_K, 110 bytes: 32 of q's third bit, 64 of its low two, 12 of s, F16 d; a weight is d·(s - 32)·(q - 4).

    Sub-blocks of 16; q in [0, 7], s in [0, 63]. With weights: `fit_symmetric`, of the scales too, with the sub-block's
    importance. Without: `fit_by_turns`; d = 1 / (-32 / peak scale), s - 32 = round(-32·scale / peak).

    s: low four bits of s₀…s₇ and above them those of s₈…s₁₅ in 8 bytes, high two bits of s_j in byte 8 + j mod 4 at
    2·(j div 4). The third bit of weight i is bit i div 32 of byte i mod 32.
    """
    x, columns = _super_blocks(rows, weights)
    blocks = _split(x, 16)
    if columns is not None:
        w = _split(_importance(x, columns, 2), 16)
        fit = fit_symmetric(blocks, w, 4)
        d, s = fit_symmetric(fit.scale.reshape(-1, 16), ordered_sum(w).reshape(-1, 16), 32)
    else:
        fit = fit_by_turns(blocks, 4)
        scales = fit.scale.reshape(-1, 16)
        top = peak(scales)
        factor = f32(-32) / top
        s = nearest_int(factor[:, None] * scales).astype(np.int8).astype(np.int32)
        s = np.where((top != 0)[:, None], np.clip(s, -32, 31) + 32, 0)
        d = np.where(top != 0, ONE / factor, ZERO)
    d_bytes, d = _half(d)
    stored = (d[:, None] * (s - 32).astype(np.float32)).reshape(-1)
    q = _requantize_symmetric(blocks, stored, fit.q, 4)
    shifts = np.arange(8, dtype=np.int32)[None, :, None]
    third = _merged(q.reshape(-1, 8, 32) >> 2 << shifts, 1)
    low = (s[:, :8] & 15) | ((s[:, 8:] & 15) << 4)
    high = _merged(s.reshape(-1, 4, 4) >> 4 << 2 * shifts[:, :4], 1)
    return _joined(rows, [third, _two_bits(q), low, high, d_bytes])


def encode_q6_k(rows: Floats, weights: Floats | None) -> Bytes:
    """Q6_K, 210 bytes: 128 of q's low four bits, 64 of its high two, 16 int8 of s, F16 d; a weight is d·s·(q - 32).

    Sub-blocks of 16; q in [0, 63]. `fit_symmetric` with the columns' weights, or with x². d = 1 / (-128 / peak scale),
    s = round(-128·scale / peak), at most 127. All bytes 0 where |peak scale| < 1e-15.

    Of each 128 weights i and 64 + i share a byte of low bits (i < 64), i, 32 + i, 64 + i and 96 + i one of high bits.
    """
    x, columns = _super_blocks(rows, weights)
    blocks = _split(x, 16)
    fit = fit_symmetric(blocks, blocks * blocks if columns is None else _split(columns, 16), 32)
    scales = fit.scale.reshape(-1, 16)
    top = peak(scales)
    empty = np.abs(top) < NO_SCALE
    factor = f32(-128) / top
    s = np.minimum(127, nearest_int(factor[:, None] * scales)).astype(np.int8).astype(np.int32)
    d_bytes, d = _half(ONE / factor)
    stored = (d[:, None] * s.astype(np.float32)).reshape(-1)
    q = _requantize_symmetric(blocks, stored, fit.q, 32).reshape(-1, 2, 4, 32)
    low = (q[:, :, :2] & 15) | ((q[:, :, 2:] & 15) << 4)
    shifts = 2 * np.arange(4, dtype=np.int32)[None, None, :, None]
    high = _merged(q >> 4 << shifts, 2)
    parts: list[npt.NDArray[Any]] = [low.reshape(-1, 128), high.reshape(-1, 64), _bytes(s), d_bytes]
    return _joined(rows, [np.where(empty[:, None], 0, part) for part in parts])


def _two_bits(q: Ints) -> Ints:
    """Low two bits of 256 q in 64 bytes: of each 128, four that lie 32 apart share a byte, [n_super, 64]."""
    shifts = 2 * np.arange(4, dtype=np.int32)[None, None, :, None]
    return _merged((q.reshape(-1, 2, 4, 32) & 3) << shifts, 2).reshape(-1, 64)


def _merged(values: Ints, axis: int) -> Ints:
    """All bits of the values along an axis."""
    merged: Ints = np.bitwise_or.reduce(values, axis=axis)
    return merged


def _joined(rows: Floats, parts: list[npt.NDArray[Any]]) -> Bytes:
    """Parts [n_super, some bytes] of each super-block behind each other, as rows."""
    return np.concatenate([part.astype(np.uint8) for part in parts], axis=1).reshape(len(rows), -1)


def _quietly(encode: Callable[[Floats, Floats | None], Bytes]) -> Callable[[Floats, Floats | None], Bytes]:
    """Divisions by zero and overflows are part of the definition; NumPy need not warn of them."""

    @functools.wraps(encode)
    def quiet(rows: Floats, weights: Floats | None) -> Bytes:
        with np.errstate(all="ignore"):
            return encode(rows, weights)

    return quiet


ENCODERS: Mapping[GGMLQuantizationType, Callable[[Floats, Floats | None], Bytes]] = {
    GGMLQuantizationType.Q2_K: _quietly(encode_q2_k),
    GGMLQuantizationType.Q3_K: _quietly(encode_q3_k),
    GGMLQuantizationType.Q4_K: _quietly(encode_q4_k),
    GGMLQuantizationType.Q5_K: _quietly(encode_q5_k),
    GGMLQuantizationType.Q6_K: _quietly(encode_q6_k),
}
