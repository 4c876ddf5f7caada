#pragma once
// The searches for scales in src/bitloss/quantize/reference/k_fit.py, one (sub-)block per lane.
//
// Where the reference rounds by adding 1.5 * 2^23 and reading bits, the searches stay in floats: of a sum in
// [2^23, 2^24) the two agree, and that it is in there is asked once per step (`in_range`), not once per weight.
// Rounded weights are not kept: they are made again from the factors that won, where they are needed at all.
#include "k_group.hpp"

namespace bitloss {
namespace {
namespace k {

constexpr float no_scale = 1e-15F;  // blocks whose largest value is below count as zero

// Whether nearest_int(x) is in its range for all |x| up to `size`, in every lane.
BITLOSS_INLINE bool in_range(const Floats& size) { return !any(!(size < all(4e6F))); }

// nearest_int(x) limited to [low, high], as floats.
template <bool exact>
BITLOSS_INLINE Floats round_to(const Floats& x, int low, int high) {
    if (exact) return to_floats(clip(nearest_int(x), low, high));
    const Floats sum = x + all(rounder);
    return larger(smaller(sum, all(rounder + static_cast<float>(high))), all(rounder + static_cast<float>(low))) -
           all(rounder);
}

// x ≈ scale * q - min with q = nearest_int(factor * (x - shift)) limited to [0, nmax]; q = 0 where flat.
struct AffineFit {
    Floats scale, min, factor, shift;
    Mask flat;

    BITLOSS_INLINE Ints quantum(const Floats& x, int nmax) const {
        return select(flat, all(0), clip(nearest_int(factor * (x - shift)), 0, nmax));
    }
};

struct AffineSums {
    Floats l, l2, xl;
};

template <int n, int nmax, bool exact>
BITLOSS_INLINE AffineSums affine_sums(const Floats* x, const Floats* w, const Floats& factor, const Floats& shift,
                                      Floats* rounded) {
    AffineSums s{all(0.0F), all(0.0F), all(0.0F)};
#pragma GCC unroll 4
    for (int i = 0; i < n; ++i) {
        const Floats l = round_to<exact>(factor * (x[i] - shift), 0, nmax);
        rounded[i] = l;
        const Floats wl = w[i] * l;
        s.l = s.l + wl;
        s.l2 = s.l2 + wl * l;
        s.xl = s.xl + wl * x[i];
    }
    return s;
}

template <int n, bool absolute_error>
BITLOSS_INLINE Floats affine_error(const Floats* x, const Floats* w, const Floats* rounded, const Floats& scale,
                                   const Floats& low) {
    Floats error = all(0.0F);
#pragma GCC unroll 4
    for (int i = 0; i < n; ++i) {
        const Floats miss = scale * rounded[i] + low - x[i];
        error = error + w[i] * (absolute_error ? absolute(miss) : miss * miss);
    }
    return error;
}

template <int n, int nmax, bool absolute_error>
AffineFit fit_affine(const Floats* x, const Floats* w, float from, float step, int steps) {
    const Floats zero = all(0.0F);
    Floats lowest = x[0], highest = x[0], sum_w = w[0], sum_x = sum_w * x[0];
    for (int i = 1; i < n; ++i) {
        lowest = smaller(x[i], lowest);
        highest = larger(x[i], highest);
        sum_w = sum_w + w[i];
        sum_x = sum_x + w[i] * x[i];
    }
    const Floats floor = smaller(zero, lowest);
    Floats low = floor;
    AffineFit best;
    best.flat = highest <= low;
    // Flat lanes go along with a range of their own, so that they do not take the others out of range.
    highest = select(best.flat, low + all(1.0F), highest);
    best.factor = all(static_cast<float>(nmax)) / (highest - low);
    best.shift = low;
    best.scale = all(1.0F) / best.factor;
    Floats rounded[n];
    const auto sums = [&](const Floats& factor) __attribute__((always_inline)) {
        const Floats reach = larger(absolute(highest - low), absolute(lowest - low));
        return in_range(absolute(factor) * reach) ? affine_sums<n, nmax, false>(x, w, factor, low, rounded)
                                                  : affine_sums<n, nmax, true>(x, w, factor, low, rounded);
    };
    sums(best.factor);
    Floats least = affine_error<n, absolute_error>(x, w, rounded, best.scale, low);
    for (int i = 0; i <= steps; ++i) {
        const Floats factor = all(from + step * static_cast<float>(i) + static_cast<float>(nmax)) / (highest - low);
        const AffineSums s = sums(factor);
        const Floats determinant = sum_w * s.l2 - s.l * s.l;
        Floats scale = (sum_w * s.xl - sum_x * s.l) / determinant;
        Floats at_zero = (s.l2 * sum_x - s.l * s.xl) / determinant;
        const Mask above = at_zero > zero;
        if (any(above)) {
            at_zero = select(above, zero, at_zero);
            scale = select(above, s.xl / s.l2, scale);
        }
        const Floats error = affine_error<n, absolute_error>(x, w, rounded, scale, at_zero);
        const Mask better = (determinant > zero) & (error < least);
        least = select(better, error, least);
        best.scale = select(better, scale, best.scale);
        best.factor = select(better, factor, best.factor);
        best.shift = select(better, low, best.shift);
        low = select(better, at_zero, low);  // later steps start from here
    }
    best.scale = select(best.flat, zero, best.scale);
    best.min = -select(best.flat, floor, low);
    return best;
}

// x ≈ scale * q, q in [0, nmax], for x >= 0: scales of scales. Of q the low byte is kept, as ggml does.
template <int n, int nmax>
Floats fit_positive(const Floats* x, const Floats* w, Ints* q) {
    const Floats zero = all(0.0F);
    Floats top = zero;
    for (int i = 0; i < n; ++i) top = larger(top, x[i]);
    const Mask empty = top < all(no_scale);
    top = select(empty, all(1.0F), top);
    Floats factor = all(static_cast<float>(nmax)) / top, least = zero;
    const Floats scale = all(1.0F) / factor;
    for (int i = 0; i < n; ++i) {
        const Floats miss = x[i] - scale * to_floats(nearest_int(factor * x[i]) & all(255));
        least = least + w[i] * miss * miss;
    }
    for (int step = -4; step <= 4; ++step) {
        if (step == 0) continue;
        const Floats try_factor = all(0.1F * static_cast<float>(step) + static_cast<float>(nmax)) / top;
        const Floats try_scale = all(1.0F) / try_factor;
        Floats error = zero;
        for (int i = 0; i < n; ++i) {
            const Floats l = to_floats(smaller(all(nmax), nearest_int(try_factor * x[i])));
            const Floats miss = x[i] - try_scale * l;
            error = error + w[i] * miss * miss;
        }
        const Mask better = error < least;
        least = select(better, error, least);
        factor = select(better, try_factor, factor);
    }
    Floats sum_lx = zero, sum_l2 = zero;
    for (int i = 0; i < n; ++i) {
        const Ints l = smaller(all(nmax), nearest_int(factor * x[i]));
        q[i] = l & all(255);
        const Floats as_float = to_floats(l);
        sum_lx = sum_lx + w[i] * x[i] * as_float;
        sum_l2 = sum_l2 + w[i] * as_float * as_float;
    }
    for (int round = 0; round < 5; ++round) {
        bool changed = false;
        for (int i = 0; i < n; ++i) {
            const Floats wx = w[i] * x[i], l = to_floats(q[i]);
            Floats lx = sum_lx - wx * l, l2 = sum_l2 - w[i] * l * l;
            const Ints new_q = smaller(all(nmax), nearest_int(x[i] * l2 / lx));
            const Mask candidate = (lx > zero) & (l2 > zero) & (new_q != q[i]);
            const Floats new_l = to_floats(new_q);
            lx = lx + wx * new_l;
            l2 = l2 + w[i] * new_l * new_l;
            const Mask better = candidate & (lx * lx * sum_l2 > sum_lx * sum_lx * l2);
            if (!any(better)) continue;
            changed = true;
            q[i] = select(better, new_q & all(255), q[i]);
            sum_lx = select(better, lx, sum_lx);
            sum_l2 = select(better, l2, sum_l2);
        }
        if (!changed) break;  // a lane without a change stays as it is in all further rounds
    }
    for (int i = 0; i < n; ++i) q[i] = select(empty, all(0), q[i]);
    return select(empty, zero, select(sum_l2 > zero, sum_lx / sum_l2, zero));
}

// x ≈ scale * q with q = nearest_int(factor * x) limited to [-nmax, nmax - 1]; q = -nmax where empty.
struct SymmetricFit {
    Floats scale, factor;
    Mask empty;

    // Moved up to [0, 2 * nmax - 1].
    BITLOSS_INLINE Ints quantum(const Floats& x, int nmax) const {
        return select(empty, all(0), clip(nearest_int(factor * x), -nmax, nmax - 1) + all(nmax));
    }
};

// The value of largest size, the first of several (NaN is passed over), or 1 where all count as zero.
struct Peak {
    Floats value;
    Mask empty;
};
template <int n>
BITLOSS_INLINE Peak find_peak(const Floats* x) {
    Floats size = all(0.0F), value = all(0.0F);
    for (int i = 0; i < n; ++i) {
        const Floats here = absolute(x[i]);
        const Mask more = here > size;
        size = select(more, here, size);
        value = select(more, x[i], value);
    }
    const Mask empty = size < all(no_scale);
    return {select(empty, all(1.0F), value), empty};
}

// `exact`: x need not be finite.
template <int n, int nmax, bool exact>
SymmetricFit fit_symmetric(const Floats* x, const Floats* w) {
    const Floats zero = all(0.0F);
    const Peak peak = find_peak<n>(x);
    Floats wx[n];
    for (int i = 0; i < n; ++i) wx[i] = w[i] * x[i];
    SymmetricFit fit;
    fit.empty = peak.empty;
    Floats best = zero;
    for (int step = -10; step <= 9; ++step) {
        if (step == 0) continue;
        const bool is_first = step == -10;
        const Floats factor = all(is_first ? -static_cast<float>(nmax)
                                           : -(static_cast<float>(nmax) + 0.1F * static_cast<float>(step))) /
                              peak.value;
        Floats sum_lx = zero, sum_l2 = zero;
        for (int i = 0; i < n; ++i) {
            const Floats l = round_to<exact>(factor * x[i], -nmax, nmax - 1);
            sum_lx = sum_lx + wx[i] * l;
            sum_l2 = sum_l2 + w[i] * l * l;
        }
        if (is_first) {
            fit.factor = factor;
            fit.scale = select(sum_l2 != zero, sum_lx / sum_l2, zero);
            best = fit.scale * sum_lx;
            continue;
        }
        const Mask better = (sum_l2 > zero) & (sum_lx * sum_lx > best * sum_l2);
        if (!any(better)) continue;
        const Floats scale = sum_lx / sum_l2;
        fit.factor = select(better, factor, fit.factor);
        fit.scale = select(better, scale, fit.scale);
        best = select(better, scale * sum_lx, best);
    }
    fit.scale = select(fit.empty, zero, fit.scale);
    return fit;
}

// x ≈ scale * (q - nmax), q in [0, 2 * nmax - 1], each weight x²: one quantum after the other is moved to where it is
// best for the scale the others give, up to five times through. Several blocks of n, because a step waits for the one
// before it and a division lies between.
template <int n, int nmax, int blocks>
void fit_by_turns(const Floats* x, Ints* q, Floats* scales) {
    const Floats zero = all(0.0F);
    Floats w[n * blocks], wx[n * blocks], sum_lx[blocks], sum_l2[blocks];
    Mask empty[blocks];
    for (int b = 0; b < blocks; ++b) {
        const Peak peak = find_peak<n>(x + n * b);
        empty[b] = peak.empty;
        const Floats factor = all(-static_cast<float>(nmax)) / peak.value;
        sum_lx[b] = sum_l2[b] = zero;
        for (int i = n * b; i < n * b + n; ++i) {
            w[i] = x[i] * x[i];
            wx[i] = w[i] * x[i];
            q[i] = clip(nearest_int(factor * x[i]), -nmax, nmax - 1);
            const Floats l = to_floats(q[i]);
            sum_lx[b] = sum_lx[b] + wx[i] * l;
            sum_l2[b] = sum_l2[b] + w[i] * l * l;
        }
    }
    for (int round = 0; round < 5; ++round) {
        bool changed = false;
        for (int i = 0; i < n; ++i)
#pragma GCC unroll 8
            for (int b = 0; b < blocks; ++b) {
                const int at = n * b + i;
                const Floats l = to_floats(q[at]);
                Floats lx = sum_lx[b] - wx[at] * l, l2 = sum_l2[b] - w[at] * l * l;
                const Ints new_q = clip(nearest_int(x[at] * l2 / lx), -nmax, nmax - 1);
                const Mask candidate = (lx > zero) & (new_q != q[at]);
                const Floats new_l = to_floats(new_q);
                lx = lx + wx[at] * new_l;
                l2 = l2 + w[at] * new_l * new_l;
                const Mask better = candidate & (l2 > zero) & (lx * lx * sum_l2[b] > sum_lx[b] * sum_lx[b] * l2);
                changed |= any(better);
                q[at] = select(better, new_q, q[at]);
                sum_lx[b] = select(better, lx, sum_lx[b]);
                sum_l2[b] = select(better, l2, sum_l2[b]);
            }
        if (!changed) break;  // a lane without a change stays as it is in all further rounds
    }
    for (int b = 0; b < blocks; ++b) {
        scales[b] = select(empty[b], zero, select(sum_l2[b] > zero, sum_lx[b] / sum_l2[b], zero));
        for (int i = n * b; i < n * b + n; ++i) q[i] = select(empty[b], all(0), q[i] + all(nmax));
    }
}

}  // namespace k
}  // namespace
}  // namespace bitloss
