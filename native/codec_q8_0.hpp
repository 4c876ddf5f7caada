#pragma once
// Encoder of Q8_0: definition in src/bitloss/quantize/reference/legacy.py. A block in every lane for the scales, then
// each block's weights side by side.
#include "codec_blocks.hpp"

namespace bitloss {
namespace {
namespace q8_0 {

constexpr std::size_t bytes = 34;

// Integers at most 127 in size to 32 bytes.
BITLOSS_INLINE void store_block(std::uint8_t* to, const Ints (&q)[group / lanes]) {
#if BITLOSS_VECTOR_BYTES == 32
    constexpr int n = parts;  // machine vectors of a value
    const auto v = [&](int i) { return (__m256i)q[i / n].part[i % n]; };
    // Packing works in halves of 16 bytes: the order is mended at the end.
    const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(v(0), v(1)), _mm256_packs_epi32(v(2), v(3)));
    const __m256i ordered = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    __builtin_memcpy(to, &ordered, sizeof ordered);
#else
    for (std::size_t i = 0; i < group / lanes; ++i) store_bytes(to + i * lanes, q[i]);
#endif
}

// C's roundf below 2^23: halves away from zero. 0.5 less its last bit, so that 0.49999997 does not reach 1.
BITLOSS_INLINE Ints round_away(const Floats& x) {
    const Ints sign = bits(x) & all(static_cast<std::int32_t>(0x80000000));
    return to_ints(x + from_bits(sign | bits(all(0x1.fffffep-2F))));
}

// The largest magnitude of each lane's block.
BITLOSS_INLINE Floats tops(const float* x, std::size_t count) {
    machine::Floats top[lanes];
    for (std::size_t b = 0; b < lanes; ++b) {
        const float* from = x + (b < count ? b : count - 1) * group;
        machine::Floats sizes[group / machine::width];
        for (std::size_t i = 0; i < group / machine::width; ++i) {
            const machine::Floats v = machine::load_floats(from + i * machine::width);
            sizes[i] = (machine::Floats)((machine::Ints)v & 0x7fffffff);
        }
        top[b] = sizes[0];
        for (std::size_t i = 1; i < group / machine::width; ++i) top[b] = machine::larger(top[b], sizes[i]);
    }
    Floats all_tops;
    for (int p = 0; p < parts; ++p) {
        machine::Floats* square = top + p * machine::width;
        machine::transpose(square);
        for (int i = 1; i < machine::width; ++i) square[0] = machine::larger(square[0], square[i]);
        all_tops.part[p] = square[0];
    }
    return all_tops;
}

inline void encode(const EncodeJob& job, std::size_t first, std::size_t end) {
    for (std::size_t at = first; at < end; at += lanes) {
        const std::size_t count = end - at < lanes ? end - at : lanes;
        const float* x = job.x + at * group;
        std::uint8_t* out = job.out + at * bytes;
        const Floats d = tops(x, count) / all(127.0F), raw = all(1.0F) / d;
        // Where 1/d is infinite, so would the quotients be, and an infinity in eight bits is 0: as d = 0 has it.
        float inverses[lanes];
        store(inverses, select(raw < all(__builtin_inff()), raw, all(0.0F)));
        std::int32_t halves[lanes];
        store(halves, to_half(d));
        for (std::size_t b = 0; b < count; ++b, x += group, out += bytes) {
            __builtin_memcpy(out, &halves[b], 2);
            const Floats inverse = all(inverses[b]);
            Ints q[group / lanes];
#pragma GCC unroll 8
            for (std::size_t i = 0; i < group / lanes; ++i) q[i] = round_away(load<Floats>(x + i * lanes) * inverse);
            store_block(out + 2, q);
        }
    }
}

}  // namespace q8_0
}  // namespace
}  // namespace bitloss
