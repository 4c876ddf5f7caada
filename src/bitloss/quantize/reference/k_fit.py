"""The searches for scales that the K formats share, in NumPy.

All arrays are float32 [n_blocks, n]: a row is a block of n weights x with importance w. Every operation is a single one
in float32, in the order written; sums over a block are taken from its first entry to its last (`ordered_sum`). Blocks
do not touch each other.

Source: ggml/src/ggml-quants.c of the pinned llama.cpp (nearest_int, make_qkx2_quants, make_qkx3_quants, make_qp_quants,
make_qx_quants, make_q3_quants).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

ZERO, ONE = np.float32(0), np.float32(1)
NO_SCALE = np.float32(1e-15)  # blocks whose largest value is below count as zero
_ROUNDER = np.float32(12582912)  # 1.5 · 2^23
_ROUNDS = 5


def nearest_int(x: Floats) -> Ints:
    """The nearest integer, ties to even, for |x| < 2^22: x + 1.5·2^23 has it in its low bits.

    Beyond, and for NaN, the low bits are something else, and so is the result; it is part of the format's definition.
    """
    raw = (x + _ROUNDER).astype(np.float32).view(np.int32)
    return (raw & np.int32(0x007FFFFF)) - np.int32(0x00400000)


def ordered_sum(terms: Floats) -> Floats:
    """((0 + t₀) + t₁) + … along the last axis."""
    total = np.zeros(terms.shape[:-1], np.float32)
    for i in range(terms.shape[-1]):
        total = total + terms[..., i]
    return total


def f32(value: float) -> np.float32:
    """A constant or a counter as float32."""
    return np.float32(value)


def ratio(a: Floats, b: Floats) -> Floats:
    """Return a / b (NumPy's stubs take the quotient of float32 sums for float64)."""
    quotient: Floats = np.divide(a, b, dtype=np.float32)
    return quotient


class AffineFit(NamedTuple):
    """x ≈ scale·q - minimum.

    Attributes:
        scale: float32 [n_blocks], at least 0.
        minimum: float32 [n_blocks], at least 0.
        q: int32 [n_blocks, n], in [0, nmax].
    """

    scale: Floats
    minimum: Floats
    q: Ints


class AffineSearch(NamedTuple):
    """Settings of `fit_affine`.

    Attributes:
        nmax: largest q.
        start: offset of the first step.
        step: from one step to the next.
        steps: number of the last step (the first is 0).
        absolute: errors count by their size, not by their square.
    """

    nmax: int
    start: float
    step: float
    steps: int
    absolute: bool = False


def fit_affine(x: Floats, w: Floats, search: AffineSearch) -> AffineFit:
    """Least weighted error over a range of factors, each with its least-squares scale and minimum.

    low = min(0, min x), high = max x; a block with high <= low has scale 0, q 0, minimum -low. Starts from
    q = round(f·(x - low)), f = nmax / (high - low), scale 1 / f. Step k = 0 … steps tries
    f = (start + step·k + nmax) / (high - low) with the *current* low, solves for scale and low, with low > 0 replaced
    by 0 and scale by Σwqx / Σwq², and keeps what has a smaller error Σ w·(scale·q + low - x)² than all before.
    """
    nmax = f32(search.nmax)
    sum_w, sum_x = w[:, 0], w[:, 0] * x[:, 0]
    for i in range(1, x.shape[1]):
        sum_w = sum_w + w[:, i]
        sum_x = sum_x + w[:, i] * x[:, i]
    low = x.min(axis=1)
    low = np.where(low > 0, ZERO, low)
    high = x.max(axis=1)
    flat, floor = high <= low, low

    def rounded(factor: Floats) -> tuple[Ints, Floats]:
        q = np.clip(nearest_int(factor[:, None] * (x - low[:, None])), 0, search.nmax)
        return q, q.astype(np.float32)

    def error_of(scale: Floats, low: Floats, l_: Floats) -> Floats:
        miss = scale[:, None] * l_ + low[:, None] - x
        return ordered_sum(w * (np.abs(miss) if search.absolute else miss * miss))

    factor = nmax / (high - low)
    scale = ONE / factor
    best_q, l_ = rounded(factor)
    least = error_of(scale, low, l_)
    for k in range(search.steps + 1):
        factor = (f32(search.start) + f32(search.step) * f32(k) + nmax) / (high - low)
        q, l_ = rounded(factor)
        wl = w * l_
        sum_l, sum_l2, sum_xl = ordered_sum(wl), ordered_sum(wl * l_), ordered_sum(wl * x)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        new_scale = ratio(sum_w * sum_xl - sum_x * sum_l, determinant)
        new_low = ratio(sum_l2 * sum_x - sum_l * sum_xl, determinant)
        above = new_low > 0
        new_low = np.where(above, ZERO, new_low)
        new_scale = np.where(above, ratio(sum_xl, sum_l2), new_scale)
        error = error_of(new_scale, new_low, l_)
        better = (determinant > 0) & (error < least)
        best_q = np.where(better[:, None], q, best_q)
        least = np.where(better, error, least)
        scale = np.where(better, new_scale, scale)
        low = np.where(better, new_low, low)
    return AffineFit(
        np.where(flat, ZERO, scale), -np.where(flat, floor, low), np.where(flat[:, None], 0, best_q)
    )


class Fit(NamedTuple):
    """x ≈ scale·q (`fit_positive`), or scale·(q - nmax) (the symmetric ones).

    Attributes:
        scale: float32 [n_blocks].
        q: int32 [n_blocks, n].
    """

    scale: Floats
    q: Ints


def fit_positive(x: Floats, w: Floats, nmax: int) -> Fit:
    """Scales of scales: x >= 0, q in [0, nmax].

    f = nmax / max x and eight neighbours (nmax + 0.1·k) / max x, k = -4 … 4; the one with the smallest Σ w·(x - q/f)²
    gives q = round(f·x). Then up to five times through the block: q_i is moved to round(x_i·Σwq² / Σwxq), sums without
    entry i, where that raises (Σwxq)² / Σwq². Scale Σwxq / Σwq². All 0 where max x < 1e-15. The first q is not limited
    to nmax, and q are bytes: the low eight bits are kept.
    """
    top = np.maximum(ZERO, x.max(axis=1))
    empty = top < NO_SCALE
    factor = f32(nmax) / top

    def error_of(factor: Floats, q: Ints) -> Floats:
        miss = x - (ONE / factor)[:, None] * q.astype(np.float32)
        return ordered_sum(w * miss * miss)

    def limited(factor: Floats) -> Ints:
        return np.minimum(nmax, nearest_int(factor[:, None] * x))

    least = error_of(factor, nearest_int(factor[:, None] * x) & 255)
    for k in (-4, -3, -2, -1, 1, 2, 3, 4):
        other = (f32(0.1) * f32(k) + f32(nmax)) / top
        error = error_of(other, limited(other))
        better = error < least
        least, factor = np.where(better, error, least), np.where(better, other, factor)
    q = limited(factor)
    l_ = q.astype(np.float32)
    sums = ordered_sum(w * x * l_), ordered_sum(w * l_ * l_)
    scale, q = _take_turns(x, w, q & 255, sums, (None, nmax))
    return Fit(np.where(empty, ZERO, scale), np.where(empty[:, None], 0, q))


def _take_turns(
    x: Floats, w: Floats, q: Ints, sums: tuple[Floats, Floats], limits: tuple[int | None, int]
) -> tuple[Floats, Ints]:
    """Move one q after the other to where it is best for the scale the others give, five times through.

    Without a lower limit (`fit_positive`) q are bytes, and Σwq² without entry i has to be above 0; with one, that
    of the new entries has to be.
    """
    lowest, highest = limits
    q = q.copy()
    sum_lx, sum_l2 = sums
    for _ in range(_ROUNDS):
        for i in range(x.shape[1]):
            wi, wx, l_ = w[:, i], w[:, i] * x[:, i], q[:, i].astype(np.float32)
            lx, l2 = sum_lx - wx * l_, sum_l2 - wi * l_ * l_
            new_q = np.clip(nearest_int(ratio(x[:, i] * l2, lx)), lowest, highest)
            new_l = new_q.astype(np.float32)
            new_lx, new_l2 = lx + wx * new_l, l2 + wi * new_l * new_l
            better = (lx > 0) & ((l2 if lowest is None else new_l2) > 0) & (new_q != q[:, i])
            better &= new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2
            q[:, i] = np.where(better, new_q & 255 if lowest is None else new_q, q[:, i])
            sum_lx, sum_l2 = np.where(better, new_lx, sum_lx), np.where(better, new_l2, sum_l2)
    return np.where(sum_l2 > 0, sum_lx / sum_l2, ZERO), q


def peak(x: Floats) -> Floats:
    """The value of largest size in each block, the first of several, with its sign; NaN counts as 0."""
    x = np.where(np.isnan(x), ZERO, x)
    return np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)[:, 0]


def fit_symmetric(x: Floats, w: Floats, nmax: int) -> Fit:
    """For x of both signs: q in [0, 2·nmax - 1] stands for q - nmax.

    l = round(f·x) limited to [-nmax, nmax - 1], with f = -nmax / peak and then -(nmax + 0.1·k) / peak,
    k = -9 … 9 without 0; a later f is taken where it has a larger (Σwxl)² / Σwl². Scale Σwxl / Σwl², 0 where Σwl² = 0.
    Scale 0 and all q = 0 where |peak| < 1e-15.
    """
    top = peak(x)
    empty = np.abs(top) < NO_SCALE

    def rounded(factor: Floats) -> tuple[Ints, Floats, Floats]:
        q = np.clip(nearest_int(factor[:, None] * x), -nmax, nmax - 1)
        l_ = q.astype(np.float32)
        return q, ordered_sum(w * x * l_), ordered_sum(w * l_ * l_)

    best_q, sum_lx, sum_l2 = rounded(f32(-nmax) / top)
    scale = np.where(sum_l2 != 0, sum_lx / sum_l2, ZERO)
    best = scale * sum_lx
    for k in (*range(-9, 0), *range(1, 10)):
        q, sum_lx, sum_l2 = rounded(-(f32(nmax) + f32(0.1) * f32(k)) / top)
        better = (sum_l2 > 0) & (sum_lx * sum_lx > best * sum_l2)
        best_q = np.where(better[:, None], q, best_q)
        scale = np.where(better, sum_lx / sum_l2, scale)
        best = np.where(better, scale * sum_lx, best)
    return Fit(np.where(empty, ZERO, scale), np.where(empty[:, None], 0, best_q + nmax))


def fit_by_turns(x: Floats, nmax: int) -> Fit:
    """As `fit_symmetric`, with weights x² and another search.

    From l = round(-nmax·x / peak), entries are moved one at a time as in `fit_positive`.
    """
    top = peak(x)
    empty = np.abs(top) < NO_SCALE
    w = x * x
    q = np.clip(nearest_int((f32(-nmax) / top)[:, None] * x), -nmax, nmax - 1)
    l_ = q.astype(np.float32)
    sums = ordered_sum(w * x * l_), ordered_sum(w * l_ * l_)
    scale, q = _take_turns(x, w, q, sums, (-nmax, nmax - 1))
    return Fit(np.where(empty, ZERO, scale), np.where(empty[:, None], 0, q + nmax))
