#pragma once
// What the formats of 32 weights share: a block in every lane, and the bytes back out of the lanes.
#include "codec.hpp"
#include "lanes.hpp"

namespace bitloss {
namespace {

constexpr std::size_t group = 32;  // weights with one scale
constexpr float almost_zero = 1e-15F;

using Group = Floats[group];
using Quants = Ints[group];

namespace machine {

constexpr int width = BITLOSS_VECTOR_BYTES / 4;

BITLOSS_INLINE Floats load_floats(const float* from) {
    Floats x;
    __builtin_memcpy(&x, from, sizeof x);
    return x;
}

// Exchanges the halves, quarters, ... of a square of lanes: t[j][l] becomes t[l][j].
template <int Step = width / 2>
BITLOSS_INLINE void transpose(Floats* t) {
    if constexpr (Step > 0) {
        Ints low, high;
        for (int l = 0; l < width; ++l) {
            low[l] = (l & Step) != 0 ? width + (l ^ Step) : l;
            high[l] = (l & Step) != 0 ? width + l : (l ^ Step);
        }
        for (int i = 0; i < width; ++i) {
            if ((i & Step) != 0) continue;
            const Floats a = t[i], b = t[i | Step];
            t[i] = __builtin_shuffle(a, b, low);
            t[i | Step] = __builtin_shuffle(a, b, high);
        }
        transpose<Step / 2>(t);
    }
}

}  // namespace machine

// x[j] = from[lane][j] for j < n, a multiple of the machine's vector.
BITLOSS_INLINE void gather(const float* const (&from)[lanes], std::size_t n, Floats* x) {
    constexpr std::size_t width = machine::width;
    for (std::size_t p = 0; p < parts; ++p)
        for (std::size_t j = 0; j < n; j += width) {
            machine::Floats t[width];
            for (std::size_t l = 0; l < width; ++l) t[l] = machine::load_floats(from[p * width + l] + j);
            machine::transpose(t);
            for (std::size_t l = 0; l < width; ++l) x[j + l].part[p] = t[l];
        }
}

// out[s] = Σ x² over segment s of `length` values, one after the other from the first; a lane for every segment.
inline void sums_of_squares(const float* x, std::size_t segments, std::size_t length, float* out) {
    for (std::size_t at = 0; at < segments; at += lanes) {
        const float* from[lanes];
        for (std::size_t l = 0; l < lanes; ++l) from[l] = x + (at + l < segments ? at + l : segments - 1) * length;
        Floats sum = all(0.0F);
        for (std::size_t j = 0; j < length; j += machine::width) {
            Floats t[machine::width];
            gather(from, machine::width, t);
            for (int i = 0; i < machine::width; ++i) sum = sum + t[i] * t[i];
            for (std::size_t l = 0; l < lanes; ++l) from[l] += machine::width;
        }
        float sums[lanes];
        store(sums, sum);
        for (std::size_t l = 0; l < lanes && at + l < segments; ++l) out[at + l] = sums[l];
    }
}

// Groups [at, at + lanes) of a job, of which `count` exist; the lanes beyond repeat the last one.
struct Batch {
    const float* x[lanes];
    const float* weights[lanes];  // of the same columns, or null

    BITLOSS_INLINE Batch(const EncodeJob& job, std::size_t groups_per_row, std::size_t at, std::size_t count) {
        for (std::size_t l = 0; l < lanes; ++l) {
            const std::size_t g = at + (l < count ? l : count - 1);
            x[l] = job.x + g * group;
            weights[l] = job.weights == nullptr ? nullptr : job.weights + g % groups_per_row * group;
        }
    }
};

// u = importance * √(σ² + x²), what the squared error of each value counts.
BITLOSS_INLINE void error_weights(const Batch& batch, const Group& x, const Floats& sigma2, Group& u) {
    gather(batch.weights, group, u);
    for (std::size_t j = 0; j < group; ++j) u[j] = u[j] * square_root(sigma2 + x[j] * x[j]);
}

struct Largest {
    Floats size, value;  // the largest magnitude, and the first value that has it
};

BITLOSS_INLINE Largest first_largest(const Group& x) {
    Largest m{all(0.0F), all(0.0F)};
    for (std::size_t j = 0; j < group; ++j) {
        const Floats size = absolute(x[j]);
        m.value = select(m.size < size, x[j], m.value);
        m.size = larger(size, m.size);
    }
    return m;
}

// 1/d, and 0 for d = 0.
BITLOSS_INLINE Floats inverse(const Floats& d) { return select(d == all(0.0F), all(0.0F), all(1.0F) / d); }

// Little endian words of quants 0..31 at four bits: byte j has quant j low and quant j + 16 high.
struct Nibbles {
    std::int32_t word[4][lanes];

    BITLOSS_INLINE explicit Nibbles(const Quants& q) {
        for (std::size_t k = 0; k < 4; ++k) {
            Ints packed = all(0);
            for (std::size_t i = 0; i < 4; ++i)
                packed = packed | ((q[4 * k + i] | q[4 * k + i + 16] << 4) << static_cast<int>(8 * i));
            store(word[k], packed);
        }
    }
    BITLOSS_INLINE void write(std::uint8_t* to, std::size_t lane) const {
        for (std::size_t k = 0; k < 4; ++k) __builtin_memcpy(to + 4 * k, &word[k][lane], 4);
    }
};

}  // namespace
}  // namespace bitloss
