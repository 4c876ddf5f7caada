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

// Sub-blocks taken side by side: each is a chain of additions that wait for one another.
constexpr int side = 2;

template <int n, int nmax, bool exact>
BITLOSS_INLINE void affine_sums(const Floats* x, const Floats* w, const Floats (&factor)[side],
                                const Floats (&low)[side], Floats* rounded, AffineSums (&to)[side]) {
    AffineSums s[side];
    for (int b = 0; b < side; ++b) s[b].l = s[b].l2 = s[b].xl = all(0.0F);
#pragma GCC unroll 2
    for (int i = 0; i < n; ++i)
#pragma GCC unroll 2
        for (int b = 0; b < side; ++b) {
            const int at = n * b + i;
            const Floats l = round_to<exact>(factor[b] * (x[at] - low[b]), 0, nmax);
            rounded[at] = l;
            const Floats wl = w[at] * l;
            s[b].l = s[b].l + wl;
            s[b].l2 = s[b].l2 + wl * l;
            s[b].xl = s[b].xl + wl * x[at];
        }
    for (int b = 0; b < side; ++b) to[b] = s[b];
}

template <int n, bool absolute_error>
BITLOSS_INLINE void affine_error(const Floats* x, const Floats* w, const Floats* rounded, const Floats (&scale)[side],
                                 const Floats (&low)[side], Floats (&to)[side]) {
    Floats error[side];
    for (int b = 0; b < side; ++b) error[b] = all(0.0F);
#pragma GCC unroll 4
    for (int i = 0; i < n; ++i)
#pragma GCC unroll 2
        for (int b = 0; b < side; ++b) {
            const int at = n * b + i;
            const Floats miss = scale[b] * rounded[at] + low[b] - x[at];
            error[b] = error[b] + w[at] * (absolute_error ? absolute(miss) : miss * miss);
        }
    for (int b = 0; b < side; ++b) to[b] = error[b];
}

struct AffineSteps {
    float start, step;
    int last;
};

// What a sub-block's search starts from and never changes.
template <int n>
struct AffineStart {
    Floats lowest, highest, floor, sum_w, sum_x;
    Mask flat;

    BITLOSS_INLINE AffineStart(const Floats* x, const Floats* w) {
        lowest = highest = x[0];
        sum_w = w[0];
        sum_x = sum_w * x[0];
        for (int i = 1; i < n; ++i) {
            lowest = smaller(x[i], lowest);
            highest = larger(x[i], highest);
            sum_w = sum_w + w[i];
            sum_x = sum_x + w[i] * x[i];
        }
        floor = smaller(all(0.0F), lowest);
        flat = highest <= floor;
        // Flat lanes go along with a range of their own, so that they do not take the others out of range.
        highest = select(flat, floor + all(1.0F), highest);
    }
};

// `side` sub-blocks of n weights that follow each other.
template <int n, int nmax, bool absolute_error>
void fit_affine(const Floats* x, const Floats* w, AffineSteps steps, AffineFit* best) {
    const Floats zero = all(0.0F);
    const AffineStart<n> start[side] = {{x, w}, {x + n, w + n}};
    Floats rounded[n * side], low[side], least[side], factor[side], scale[side], at_zero[side], error[side];
    AffineSums sums[side];
    const auto add_up = [&]() __attribute__((always_inline)) {
        Floats reach = zero;
        for (int b = 0; b < side; ++b) {
            const Floats up = absolute(start[b].highest - low[b]), down = absolute(start[b].lowest - low[b]);
            reach = larger(absolute(factor[b]) * larger(up, down), reach);
        }
        if (in_range(reach))
            affine_sums<n, nmax, false>(x, w, factor, low, rounded, sums);
        else
            affine_sums<n, nmax, true>(x, w, factor, low, rounded, sums);
    };
    for (int b = 0; b < side; ++b) {
        low[b] = start[b].floor;
        factor[b] = all(static_cast<float>(nmax)) / (start[b].highest - low[b]);
        scale[b] = all(1.0F) / factor[b];
        best[b].flat = start[b].flat;
        best[b].factor = factor[b];
        best[b].shift = low[b];
        best[b].scale = scale[b];
    }
    add_up();
    affine_error<n, absolute_error>(x, w, rounded, scale, low, least);
    for (int i = 0; i <= steps.last; ++i) {
        const Floats levels = all(steps.start + steps.step * static_cast<float>(i) + static_cast<float>(nmax));
        for (int b = 0; b < side; ++b) factor[b] = levels / (start[b].highest - low[b]);
        add_up();
        Mask solved[side];
        for (int b = 0; b < side; ++b) {
            const AffineSums s = sums[b];
            const Floats determinant = start[b].sum_w * s.l2 - s.l * s.l;
            solved[b] = determinant > zero;
            scale[b] = (start[b].sum_w * s.xl - start[b].sum_x * s.l) / determinant;
            at_zero[b] = (s.l2 * start[b].sum_x - s.l * s.xl) / determinant;
            const Mask above = at_zero[b] > zero;
            if (any(above)) {
                at_zero[b] = select(above, zero, at_zero[b]);
                scale[b] = select(above, s.xl / s.l2, scale[b]);
            }
        }
        affine_error<n, absolute_error>(x, w, rounded, scale, at_zero, error);
        for (int b = 0; b < side; ++b) {
            const Mask better = solved[b] & (error[b] < least[b]);
            least[b] = select(better, error[b], least[b]);
            best[b].scale = select(better, scale[b], best[b].scale);
            best[b].factor = select(better, factor[b], best[b].factor);
            best[b].shift = select(better, low[b], best[b].shift);
            low[b] = select(better, at_zero[b], low[b]);  // later steps start from here
        }
    }
    for (int b = 0; b < side; ++b) {
        best[b].scale = select(start[b].flat, zero, best[b].scale);
        best[b].min = -select(start[b].flat, start[b].floor, low[b]);
    }
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

// Σ w x l and Σ w l² for several factors at once: they share what is read.
template <int n, int nmax, bool exact, int factors>
BITLOSS_INLINE void symmetric_sums(const Floats* x, const Floats* w, const Floats* wx, const Floats (&factor)[factors],
                                   Floats (&to_lx)[factors], Floats (&to_l2)[factors]) {
    Floats lx[factors], l2[factors];
    for (int f = 0; f < factors; ++f) lx[f] = l2[f] = all(0.0F);
#pragma GCC unroll 2
    for (int i = 0; i < n; ++i)
#pragma GCC unroll 4
        for (int f = 0; f < factors; ++f) {
            const Floats l = round_to<exact>(factor[f] * x[i], -nmax, nmax - 1);
            lx[f] = lx[f] + wx[i] * l;
            l2[f] = l2[f] + w[i] * l * l;
        }
    for (int f = 0; f < factors; ++f) {
        to_lx[f] = lx[f];
        to_l2[f] = l2[f];
    }
}

// `exact`: x need not be finite.
template <int n, int nmax, bool exact>
SymmetricFit fit_symmetric(const Floats* x, const Floats* w) {
    constexpr int together = 3;  // of the steps -9 to 9 without 0
    const Floats zero = all(0.0F);
    const Peak peak = find_peak<n>(x);
    Floats wx[n];
    for (int i = 0; i < n; ++i) wx[i] = w[i] * x[i];
    SymmetricFit fit;
    fit.empty = peak.empty;
    Floats first[1] = {all(-static_cast<float>(nmax)) / peak.value}, first_lx[1], first_l2[1];
    symmetric_sums<n, nmax, exact>(x, w, wx, first, first_lx, first_l2);
    fit.factor = first[0];
    fit.scale = select(first_l2[0] != zero, first_lx[0] / first_l2[0], zero);
    Floats best = fit.scale * first_lx[0];
    for (int at = 0; at < 18; at += together) {
        Floats factor[together], lx[together], l2[together];
        for (int f = 0; f < together; ++f) {
            const int step = at + f < 9 ? at + f - 9 : at + f - 8;
            factor[f] = all(-(static_cast<float>(nmax) + 0.1F * static_cast<float>(step))) / peak.value;
        }
        symmetric_sums<n, nmax, exact>(x, w, wx, factor, lx, l2);
        for (int f = 0; f < together; ++f) {
            const Mask better = (l2[f] > zero) & (lx[f] * lx[f] > best * l2[f]);
            if (!any(better)) continue;
            const Floats scale = lx[f] / l2[f];
            fit.factor = select(better, factor[f], fit.factor);
            fit.scale = select(better, scale, fit.scale);
            best = select(better, scale * lx[f], best);
        }
    }
    fit.scale = select(fit.empty, zero, fit.scale);
    return fit;
}

// x ≈ scale * (q - nmax), q in [0, 2 * nmax - 1], each weight x²: one quantum after the other is moved to where it is
// best for the scale the others give, up to five times through.
template <int n, int nmax>
Floats fit_by_turns(const Floats* x, Ints* q) {
    const Floats zero = all(0.0F);
    const Peak peak = find_peak<n>(x);
    const Floats factor = all(-static_cast<float>(nmax)) / peak.value;
    Floats w[n], wx[n], sum_lx = zero, sum_l2 = zero;
    for (int i = 0; i < n; ++i) {
        w[i] = x[i] * x[i];
        wx[i] = w[i] * x[i];
        q[i] = clip(nearest_int(factor * x[i]), -nmax, nmax - 1);
        const Floats l = to_floats(q[i]);
        sum_lx = sum_lx + wx[i] * l;
        sum_l2 = sum_l2 + w[i] * l * l;
    }
    for (int round = 0; round < 5; ++round) {
        bool changed = false;
        for (int i = 0; i < n; ++i) {
            const Floats l = to_floats(q[i]);
            Floats lx = sum_lx - wx[i] * l, l2 = sum_l2 - w[i] * l * l;
            const Ints new_q = clip(nearest_int(x[i] * l2 / lx), -nmax, nmax - 1);
            const Mask candidate = (lx > zero) & (new_q != q[i]);
            // One in seven of eight lanes' first turns, then fewer: while the branch is foreseen, no turn waits for
            // the division of the one before.
            if (!any(candidate)) continue;
            const Floats new_l = to_floats(new_q);
            lx = lx + wx[i] * new_l;
            l2 = l2 + w[i] * new_l * new_l;
            const Mask better = candidate & (l2 > zero) & (lx * lx * sum_l2 > sum_lx * sum_lx * l2);
            changed |= any(better);
            q[i] = select(better, new_q, q[i]);
            sum_lx = select(better, lx, sum_lx);
            sum_l2 = select(better, l2, sum_l2);
        }
        if (!changed) break;  // a lane without a change stays as it is in all further rounds
    }
    for (int i = 0; i < n; ++i) q[i] = select(peak.empty, all(0), q[i] + all(nmax));
    return select(peak.empty, zero, select(sum_l2 > zero, sum_lx / sum_l2, zero));
}

}  // namespace k
}  // namespace
}  // namespace bitloss
