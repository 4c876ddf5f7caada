#pragma once
// Encoders of Q4_0, Q4_1, Q5_0, Q5_1: definition in src/bitloss/quantize/reference/legacy.py. A block in every lane.
#include "codec_blocks.hpp"

namespace bitloss {
namespace {
namespace legacy {

struct Line {
    Floats scale, low;
};

// nearest_int cut to [low, high], as a float. Unless `Exact`, |x| must be below 2^22: there it takes fewer steps.
template <bool Exact>
BITLOSS_INLINE Floats nearest(const Floats& x, float low, float high) {
    const Floats whole = Exact ? to_floats(nearest_int(x)) : (x + all(rounder)) - all(rounder);
    return smaller(larger(whole, all(low)), all(high));
}

// --- without weights ---------------------------------------------------------------------------------

BITLOSS_INLINE Ints low_byte(const Floats& x) { return to_ints(x) & all(0xff); }

template <int Levels>
BITLOSS_INLINE Line symmetric(const Group& x, Quants& q) {
    constexpr int middle = Levels / 2;
    const Floats d = first_largest(x).value / all(-static_cast<float>(middle)), id = inverse(d);
    for (std::size_t j = 0; j < group; ++j)
        q[j] = smaller(low_byte(x[j] * id + all(static_cast<float>(middle) + 0.5F)), all(Levels - 1));
    return {d, all(0.0F)};
}

template <int Levels>
BITLOSS_INLINE Line affine(const Group& x, Quants& q) {
    Floats low = all(0x1.fffffep127F), high = -low;
    for (std::size_t j = 0; j < group; ++j) {
        low = smaller(x[j], low);
        high = larger(x[j], high);
    }
    const Floats d = (high - low) / all(static_cast<float>(Levels - 1)), id = inverse(d);
    for (std::size_t j = 0; j < group; ++j) {
        const Ints raw = low_byte((x[j] - low) * id + all(0.5F));
        q[j] = Levels == 16 ? smaller(raw, all(15)) : raw & all(31);
    }
    return {d, low};
}

// --- with weights u ----------------------------------------------------------------------------------

// Tries several scales at once: their sums are chains of additions that would otherwise be waited for.
template <int Top, bool Exact, std::size_t N>
BITLOSS_INLINE void score(const Group& x, const Group& u, const Floats (&s)[N], Floats (&a)[N], Floats (&b)[N]) {
    for (std::size_t i = 0; i < N; ++i) a[i] = b[i] = all(0.0F);
    for (std::size_t j = 0; j < group; ++j) {
        const Floats ux = u[j] * x[j];
        for (std::size_t i = 0; i < N; ++i) {
            const Floats q = nearest<Exact>(s[i] * x[j], -static_cast<float>(Top), static_cast<float>(Top - 1));
            a[i] = a[i] + ux * q;
            b[i] = b[i] + u[j] * q * q;
        }
    }
}

template <int Levels, bool Exact>
BITLOSS_INLINE Line symmetric_search(const Group& x, const Group& u, Quants& q) {
    constexpr int top = Levels / 2;
    constexpr std::size_t at_once = 3;
    const Largest m = first_largest(x);
    Floats first[1] = {all(-static_cast<float>(top)) / m.value}, first_a[1], first_b[1];
    score<top, Exact>(x, u, first, first_a, first_b);
    Floats taken = first[0];
    Floats scale = select(first_b[0] == all(0.0F), all(0.0F), first_a[0] / first_b[0]), best = scale * first_a[0];
    for (int k = 0; k < 18; k += at_once) {
        Floats s[at_once], a[at_once], b[at_once];
        for (std::size_t i = 0; i < at_once; ++i) {
            const int step = k + static_cast<int>(i) - 9;
            const float tenths = 0.1F * static_cast<float>(step < 0 ? step : step + 1);
            s[i] = all(-(static_cast<float>(top) + tenths)) / m.value;
        }
        score<top, Exact>(x, u, s, a, b);
        for (std::size_t i = 0; i < at_once; ++i) {
            const Mask better = (all(0.0F) < b[i]) & (best * b[i] < a[i] * a[i]);
            scale = select(better, a[i] / b[i], scale);
            best = select(better, scale * a[i], best);
            taken = select(better, s[i], taken);
        }
    }
    const Mask zeros = m.size < all(almost_zero);
    for (std::size_t j = 0; j < group; ++j) {
        const Floats l = nearest<Exact>(taken * x[j], -static_cast<float>(top), static_cast<float>(top - 1));
        q[j] = select(zeros, all(0), to_ints(l) + all(top));
    }
    return {select(zeros, all(0.0F), scale), all(0.0F)};
}

// `fits` is cleared where a product to be rounded may reach 2^22, so that the search must be done again, exactly.
template <int Levels, bool Exact>
BITLOSS_INLINE Line affine_search(const Group& x, const Group& u, Quants& q, Mask& fits) {
    constexpr float top = static_cast<float>(Levels - 1);
    Floats low = x[0], high = x[0], sum_u = u[0], sum_x = u[0] * x[0];
    for (std::size_t j = 1; j < group; ++j) {
        low = smaller(x[j], low);
        high = larger(x[j], high);
        sum_u = sum_u + u[j];
        sum_x = sum_x + u[j] * x[j];
    }
    const Floats least_x = low;
    low = select(all(0.0F) < low, all(0.0F), low);
    const Mask flat = high <= low;
    const Floats flat_low = low;
    Floats taken = all(top) / (high - low), taken_low = low, scale = all(1.0F) / taken, least = all(0.0F);
    fits = flat | (taken < all(0x1p100F));
    for (std::size_t j = 0; j < group; ++j) {
        const Floats off = scale * nearest<Exact>(taken * (x[j] - low), 0.0F, top) + low - x[j];
        least = least + u[j] * (off * off);
    }
    for (int k = 0; k <= 36; ++k) {
        const Floats s = all(-0.9F + 0.05F * static_cast<float>(k) + top) / (high - low);
        if (!Exact)
            fits = fits & (flat | (absolute(s) * larger(absolute(high - low), absolute(least_x - low)) < all(0x1p21F)));
        Group l;
        Floats s1 = all(0.0F), s2 = s1, sx = s1;
        for (std::size_t j = 0; j < group; ++j) {
            l[j] = nearest<Exact>(s * (x[j] - low), 0.0F, top);
            const Floats ul = u[j] * l[j];
            s1 = s1 + ul;
            s2 = s2 + ul * l[j];
            sx = sx + ul * x[j];
        }
        const Floats determinant = sum_u * s2 - s1 * s1;
        Floats d = (sum_u * sx - sum_x * s1) / determinant, m = (s2 * sum_x - s1 * sx) / determinant;
        const Mask positive = all(0.0F) < m;
        d = select(positive, sx / s2, d);
        m = select(positive, all(0.0F), m);
        Floats error = all(0.0F);
        for (std::size_t j = 0; j < group; ++j) {
            const Floats off = d * l[j] + m - x[j];
            error = error + u[j] * (off * off);
        }
        const Mask better = (all(0.0F) < determinant) & (error < least);
        taken = select(better, s, taken);
        taken_low = select(better, low, taken_low);
        scale = select(better, d, scale);
        low = select(better, m, low);
        least = select(better, error, least);
    }
    for (std::size_t j = 0; j < group; ++j)
        q[j] = select(flat, all(0), to_ints(nearest<Exact>(taken * (x[j] - taken_low), 0.0F, top)));
    return {select(flat, all(0.0F), scale), select(flat, flat_low, low)};
}

// `finite`: all of x is.
template <int Levels, bool HasLow>
BITLOSS_INLINE Line search(const Group& x, const Group& u, bool finite, Quants& q) {
    if constexpr (HasLow) {
        Mask fits;
        if (finite) {
            const Line line = affine_search<Levels, false>(x, u, q, fits);
            if (!any(!fits)) return line;
        }
        return affine_search<Levels, true>(x, u, q, fits);
    } else {
        return finite ? symmetric_search<Levels, false>(x, u, q) : symmetric_search<Levels, true>(x, u, q);
    }
}

// --- blocks ------------------------------------------------------------------------------------------

template <int Levels, bool HasLow>
BITLOSS_INLINE void write(std::uint8_t* out, std::size_t count, const Line& line, Quants& q) {
    std::int32_t scale[lanes], low[lanes], fifth[lanes];
    store(scale, to_half(line.scale));
    if constexpr (HasLow) store(low, to_half(line.low));
    if constexpr (Levels == 32) {
        Ints packed = all(0);
        for (std::size_t j = 0; j < group; ++j) {
            packed = packed | (((q[j] >> 4) & all(1)) << static_cast<int>(j));
            q[j] = q[j] & all(15);
        }
        store(fifth, packed);
    }
    const Nibbles nibbles(q);
    for (std::size_t l = 0; l < count; ++l) {
        __builtin_memcpy(out, &scale[l], 2);
        out += 2;
        if constexpr (HasLow) {
            __builtin_memcpy(out, &low[l], 2);
            out += 2;
        }
        if constexpr (Levels == 32) {
            __builtin_memcpy(out, &fifth[l], 4);
            out += 4;
        }
        nibbles.write(out, l);
        out += 16;
    }
}

template <int Levels, bool HasLow>
constexpr std::size_t bytes = 18 + (HasLow ? 2 : 0) + (Levels == 32 ? 4 : 0);

template <int Levels, bool HasLow>
void encode_plain(const EncodeJob& job, std::size_t first, std::size_t end) {
    for (std::size_t at = first; at < end; at += lanes) {
        const std::size_t count = end - at < lanes ? end - at : lanes;
        Group x;
        Quants q;
        gather(Batch(job, job.blocks_per_row, at, count).x, group, x);
        const Line line = HasLow ? affine<Levels>(x, q) : symmetric<Levels>(x, q);
        write<Levels, HasLow>(job.out + at * bytes<Levels, HasLow>, count, line, q);
    }
}

template <int Levels, bool HasLow>
void encode_weighted(const EncodeJob& job, std::size_t first, std::size_t end) {
    const std::size_t in_row = job.blocks_per_row, n_rows = (end + in_row - 1) / in_row;
    for (std::size_t row = first / in_row; row < n_rows; row += lanes) {
        float sigma2[lanes];
        const std::size_t rows = n_rows - row < lanes ? n_rows - row : lanes, width = in_row * group;
        sums_of_squares(job.x + row * width, rows, width, sigma2);
        const std::size_t stop = (row + rows) * in_row < end ? (row + rows) * in_row : end;
        for (std::size_t at = row * in_row < first ? first : row * in_row; at < stop; at += lanes) {
            const std::size_t count = stop - at < lanes ? stop - at : lanes;
            float sigmas[lanes];
            for (std::size_t l = 0; l < lanes; ++l)
                sigmas[l] = sigma2[(at + (l < count ? l : count - 1)) / in_row - row];
            const Batch batch(job, in_row, at, count);
            Group x, u;
            Quants q;
            gather(batch.x, group, x);
            const Floats sigma = load<Floats>(sigmas) / all(static_cast<float>(width));
            error_weights(batch, x, sigma, u);
            const Line line = search<Levels, HasLow>(x, u, !any(!(sigma < all(0x1p127F))), q);
            write<Levels, HasLow>(job.out + at * bytes<Levels, HasLow>, count, line, q);
        }
    }
}

template <int Levels, bool HasLow>
void encode(const EncodeJob& job, std::size_t first, std::size_t end) {
    (job.weights != nullptr ? encode_weighted<Levels, HasLow> : encode_plain<Levels, HasLow>)(job, first, end);
}

}  // namespace legacy
}  // namespace
}  // namespace bitloss
