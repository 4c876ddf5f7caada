#pragma once
// Encoders of IQ4_NL and IQ4_XS: definition in src/bitloss/quantize/reference/iq4.py. A group of 32 in every lane.
#include "codec_blocks.hpp"

namespace bitloss {
namespace {
namespace iq4 {

constexpr float levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// Where level k ends. Exact in float, as are the distances to both levels there: the comparison with it decides as
// that of the two distances does, equal ones included.
constexpr float middle(int k) { return (levels[k] + levels[k + 1]) / 2; }

#if BITLOSS_VECTOR_BYTES > 16
// Binary search, the last two thresholds looked up. `k` counts down from 0 as comparisons come out true (-1), so a
// lookup takes it modulo 8; no comparison is true for NaN, which ends at the last level.
struct Nearest {
    machine::Floats quarters, eighths, lower, upper;

    BITLOSS_INLINE Nearest() {
        for (int at = 0; at < machine::width; ++at) {
            const int k = -at & 7;
            quarters[at] = middle(4 * (k & 3) + 1);
            eighths[at] = middle(2 * k);
            lower[at] = levels[2 * k];
            upper[at] = levels[2 * k + 1];
        }
    }
    static BITLOSS_INLINE Ints reached(const Floats& x, const Floats& threshold) { return as_ints(!(x < threshold)); }

    struct Found {
        Ints k, odd;
    };
    BITLOSS_INLINE Found find(const Floats& x) const {
        const Mask upper_half = !(x < all(middle(7)));
        Ints k = as_ints(upper_half);
        k = k + k + reached(x, select(upper_half, all(middle(11)), all(middle(3))));
        k = k + k + reached(x, lookup(quarters, k));
        return {k, reached(x, lookup(eighths, k))};
    }
    BITLOSS_INLINE Ints index(const Floats& x) const {
        const Found f = find(x);
        return all(0) - (f.k + f.k + f.odd);
    }
    BITLOSS_INLINE Floats level(const Floats& x) const {
        const Found f = find(x);
        return select(f.odd < all(0), lookup(upper, f.k), lookup(lower, f.k));
    }
};
#else
// One comparison for each threshold: there is no quick lookup to be had.
struct Nearest {
    BITLOSS_INLINE Ints index(const Floats& x) const {
        Ints n = all(0);
        for (int k = 0; k < 15; ++k) n = n - as_ints(!(x < all(middle(k))));
        return n;
    }
    BITLOSS_INLINE Floats level(const Floats& x) const {
        Floats v = all(levels[0]);
        for (int k = 0; k < 15; ++k)
            v = v + from_bits(as_ints(!(x < all(middle(k)))) & bits(all(levels[k + 1] - levels[k])));
        return v;
    }
};
#endif

BITLOSS_INLINE void score(const Group& x, const Group& u, const Floats& s, Floats& a, Floats& b) {
    const Nearest nearest;
    a = b = all(0.0F);
    for (std::size_t j = 0; j < group; ++j) {
        const Floats v = nearest.level(s * x[j]), uv = u[j] * v;
        a = a + uv * x[j];
        b = b + uv * v;
    }
}

BITLOSS_INLINE Floats search(const Group& x, const Group& u) {
    const Largest m = first_largest(x);
    Floats a, b;
    score(x, u, all(1.0F) / (-m.value / all(levels[0])), a, b);
    Floats scale = select(all(0.0F) < b, a / b, all(0.0F)), best = scale * a;
    for (int k = -7; k <= 7; ++k) {
        score(x, u, all(static_cast<float>(k) + levels[0]) / m.value, a, b);
        const Mask better = (all(0.0F) < b) & (best * b < a * a);
        scale = select(better, a / b, scale);
        best = select(better, scale * a, best);
    }
    return select(m.size < all(almost_zero), all(0.0F), scale);
}

BITLOSS_INLINE Nibbles quantize(const Group& x, const Floats& inverse_scale) {
    const Nearest nearest;
    Quants q;
    for (std::size_t j = 0; j < group; ++j) q[j] = nearest.index(inverse_scale * x[j]);
    return Nibbles(q);
}

void encode_nl(const EncodeJob& job, std::size_t first, std::size_t end) {
    for (std::size_t at = first; at < end; at += lanes) {
        const std::size_t count = end - at < lanes ? end - at : lanes;
        const Batch batch(job, job.blocks_per_row, at, count);
        Group x, u;
        gather(batch.x, group, x);
        Floats squares = all(0.0F);
        for (std::size_t j = 0; j < group; ++j) {
            u[j] = x[j] * x[j];
            squares = squares + u[j];
        }
        if (job.weights != nullptr) error_weights(batch, x, squares * all(2.0F / group), u);
        const Floats scale = search(x, u);
        std::int32_t halves[lanes];
        store(halves, to_half(scale));
        const Nibbles nibbles = quantize(x, inverse(scale));
        std::uint8_t* out = job.out + at * 18;
        for (std::size_t l = 0; l < count; ++l, out += 18) {
            __builtin_memcpy(out, &halves[l], 2);
            nibbles.write(out + 2, l);
        }
    }
}

constexpr std::size_t in_block = 8;  // groups of a block of IQ4_XS

// The scale of the block and the six bits of each group's, for a block in every lane.
struct BlockScales {
    Floats d;
    Ints l[in_block];

    BITLOSS_INLINE explicit BlockScales(const float (&scales)[in_block * lanes]) {
        Floats s[in_block], size = all(0.0F), value = all(0.0F);
        for (std::size_t g = 0; g < in_block; ++g) {
            float of_group[lanes];
            for (std::size_t b = 0; b < lanes; ++b) of_group[b] = scales[b * in_block + g];
            s[g] = load<Floats>(of_group);
            const Mask is_larger = size < absolute(s[g]);
            value = select(is_larger, s[g], value);
            size = select(is_larger, absolute(s[g]), size);
        }
        d = -value / all(32.0F);
        const Floats id = inverse(d);
        for (std::size_t g = 0; g < in_block; ++g) l[g] = larger(smaller(nearest_int(id * s[g]), all(31)), all(-32));
    }
    BITLOSS_INLINE void inverses(float (&out)[in_block * lanes]) const {
        for (std::size_t g = 0; g < in_block; ++g) {
            float of_group[lanes];
            store(of_group, inverse(d * to_floats(l[g])));
            for (std::size_t b = 0; b < lanes; ++b) out[b * in_block + g] = of_group[b];
        }
    }
    BITLOSS_INLINE void write(std::uint8_t* out, std::size_t count) const {
        std::int32_t halves[lanes], high[lanes], low[lanes];
        store(halves, to_half(d));
        Ints high_bits = all(0), low_bits = all(0);
        for (std::size_t g = 0; g < in_block; ++g) {
            const Ints six = l[g] + all(32);
            low_bits = low_bits | ((six & all(15)) << static_cast<int>(4 * g));
            high_bits = high_bits | ((six >> 4) << static_cast<int>(2 * g));
        }
        store(high, high_bits);
        store(low, low_bits);
        for (std::size_t b = 0; b < count; ++b, out += 136) {
            __builtin_memcpy(out, &halves[b], 2);
            __builtin_memcpy(out + 2, &high[b], 2);
            __builtin_memcpy(out + 4, &low[b], 4);
        }
    }
};

void encode_xs(const EncodeJob& job, std::size_t first, std::size_t end) {
    const std::size_t groups_per_row = job.blocks_per_row * in_block;
    for (std::size_t at = first; at < end; at += lanes) {
        const std::size_t count = end - at < lanes ? end - at : lanes, groups = count * in_block;
        float sigma2[lanes], scales[in_block * lanes] = {};
        if (job.weights != nullptr) sums_of_squares(job.x + at * 256, count, 256, sigma2);
        for (std::size_t g = 0; g < groups; g += lanes) {
            const std::size_t some = groups - g < lanes ? groups - g : lanes;
            const Batch batch(job, groups_per_row, at * in_block + g, some);
            Group x, u;
            gather(batch.x, group, x);
            if (job.weights != nullptr) {
                float sigmas[lanes];
                for (std::size_t l = 0; l < lanes; ++l) sigmas[l] = sigma2[(g + (l < some ? l : some - 1)) / in_block];
                error_weights(batch, x, load<Floats>(sigmas) * all(2.0F / 256.0F), u);
            } else {
                for (std::size_t j = 0; j < group; ++j) u[j] = x[j] * x[j];
            }
            store(scales + g, search(x, u));
        }
        const BlockScales block(scales);
        float inverses[in_block * lanes];
        block.inverses(inverses);
        block.write(job.out + at * 136, count);
        for (std::size_t g = 0; g < groups; g += lanes) {
            const std::size_t some = groups - g < lanes ? groups - g : lanes;
            Group x;
            gather(Batch(job, groups_per_row, at * in_block + g, some).x, group, x);
            const Nibbles nibbles = quantize(x, load<Floats>(inverses + g));
            for (std::size_t l = 0; l < some; ++l) {
                const std::size_t of = g + l;
                nibbles.write(job.out + (at + of / in_block) * 136 + 8 + of % in_block * 16, l);
            }
        }
    }
}

}  // namespace iq4
}  // namespace
}  // namespace bitloss
