#pragma once
// Super-blocks of 256 weights, one per lane: how they get into lanes and their bytes out again.
#include "codec.hpp"
#include "lanes.hpp"

namespace bitloss {
namespace {
namespace k {

constexpr int super = 256;

// Floats at from[lane][i] to `to`[i], lane by lane, for i < super: squares of 4 x 4 are turned over.
inline void transpose(const float* const (&from)[lanes], Floats* to) {
    typedef float Four __attribute__((vector_size(16)));
    float* out = reinterpret_cast<float*>(to);
    for (int lane = 0; lane < lanes; lane += 4)
        for (int i = 0; i < super; i += 4) {
            Four row[4];
            for (int r = 0; r < 4; ++r) __builtin_memcpy(&row[r], from[lane + r] + i, sizeof row[r]);
            const Four a = __builtin_shufflevector(row[0], row[1], 0, 4, 1, 5);
            const Four b = __builtin_shufflevector(row[2], row[3], 0, 4, 1, 5);
            const Four c = __builtin_shufflevector(row[0], row[1], 2, 6, 3, 7);
            const Four d = __builtin_shufflevector(row[2], row[3], 2, 6, 3, 7);
            const Four turned[4] = {
                __builtin_shufflevector(a, b, 0, 1, 4, 5), __builtin_shufflevector(a, b, 2, 3, 6, 7),
                __builtin_shufflevector(c, d, 0, 1, 4, 5), __builtin_shufflevector(c, d, 2, 3, 6, 7)};
            for (int r = 0; r < 4; ++r) __builtin_memcpy(out + (i + r) * lanes + lane, &turned[r], sizeof turned[r]);
        }
}

// The super-blocks [at, at + lanes) of a job; where they run past `end` the last one is taken again.
struct Group {
    Floats x[super];
    Floats weights[super];  // the columns' if the job has weights, else room

    void load(const EncodeJob& job, std::size_t at, std::size_t end) {
        const float *rows[lanes], *columns[lanes];
        for (std::size_t lane = 0; lane < lanes; ++lane) {
            const std::size_t block = at + lane < end ? at + lane : end - 1;
            rows[lane] = job.x + block * super;
            if (job.weights != nullptr) columns[lane] = job.weights + block % job.blocks_per_row * super;
        }
        transpose(rows, x);
        if (job.weights != nullptr) transpose(columns, weights);
    }
};

// Encoded super-blocks as words of four bytes, one super-block per lane.
template <int bytes>
struct Words {
    Ints word[(bytes + 3) / 4] = {};

    // ORs the low byte of every lane in.
    BITLOSS_INLINE void put(int at, const Ints& byte) { word[at / 4] = word[at / 4] | (byte << (at % 4 * 8)); }
    // Sets a whole word from four values below 256.
    BITLOSS_INLINE void put4(int at, const Ints& a, const Ints& b, const Ints& c, const Ints& d) {
        word[at / 4] = (a | (b << 8)) | ((c << 16) | (d << 24));
    }

    void store(std::uint8_t* out, std::size_t at, std::size_t end) const {
        const std::int32_t* from = reinterpret_cast<const std::int32_t*>(word);
        const std::size_t count = end - at < lanes ? end - at : lanes;
        for (std::size_t lane = 0; lane < count; ++lane) {
            std::uint8_t* to = out + (at + lane) * bytes;
            for (int i = 0; i < bytes / 4; ++i) __builtin_memcpy(to + 4 * i, from + i * lanes + lane, 4);
            if (bytes % 4 != 0) __builtin_memcpy(to + bytes / 4 * 4, from + bytes / 4 * lanes + lane, bytes % 4);
        }
    }
};

// Low two bits of 256 quanta in 64 bytes: four that lie 32 apart share a byte.
template <int bytes>
inline void put_two_bits(Words<bytes>& words, int at, const Ints* q) {
    const auto packed = [&](int from) {
        const Ints three = all(3);
        return ((q[from] & three) | ((q[from + 32] & three) << 2)) |
               (((q[from + 64] & three) << 4) | ((q[from + 96] & three) << 6));
    };
    for (int i = 0; i < 64; i += 4) {
        const int from = i < 32 ? i : i + 96;
        words.put4(at + i, packed(from), packed(from + 1), packed(from + 2), packed(from + 3));
    }
}

// l limited to [low, high].
BITLOSS_INLINE Ints clip(const Ints& l, int low, int high) { return larger(all(low), smaller(all(high), l)); }

// Turns the columns' importance weights into those of the search: times sqrt(mean_factor * mean of x² + x²).
template <int mean_factor>
inline void weigh(Group& group) {
    Floats squares = all(0.0F);
    for (int i = 0; i < super; ++i) squares = squares + group.x[i] * group.x[i];
    const Floats mean = all(static_cast<float>(mean_factor)) * squares / all(256.0F);
    for (int i = 0; i < super; ++i)
        group.weights[i] = group.weights[i] * square_root(mean + group.x[i] * group.x[i]);
}

// In order.
template <int n>
BITLOSS_INLINE Floats sum(const Floats* w) {
    Floats total = all(0.0F);
    for (int i = 0; i < n; ++i) total = total + w[i];
    return total;
}

}  // namespace k
}  // namespace
}  // namespace bitloss
