#pragma once
// Q8_0: definition in src/bitloss/quantize/reference/legacy.py. Several blocks at once for their scales, then each
// block's weights side by side.
#include "codec.hpp"
#include "lanes.hpp"

namespace bitloss {
namespace {
namespace q8_0 {

constexpr int block = 32, bytes = 34;

BITLOSS_INLINE std::size_t fewer(std::size_t a, std::size_t b) { return a < b ? a : b; }

// C's roundf below 2^23: halves away from zero. 0.5 less its last bit, so that 0.49999997 does not reach 1.
BITLOSS_INLINE Ints round_away(const Floats& x) {
    const Ints sign = bits(x) & all(static_cast<std::int32_t>(0x80000000));
    return to_ints(x + from_bits(sign | bits(all(0x1.fffffep-2F))));
}

void encode(const EncodeJob& job, std::size_t first, std::size_t end) {
    for (std::size_t at = first; at < end; at += lanes) {
        const int count = static_cast<int>(fewer(lanes, end - at));
        const float* x = job.x + at * block;
        std::uint8_t* out = job.out + at * bytes;
        float tops[lanes] = {}, inverses[lanes];
        std::int32_t halves[lanes];
        for (int b = 0; b < count; ++b) {
            Floats top = absolute(load<Floats>(x + b * block));
            for (int i = lanes; i < block; i += lanes) top = larger(top, absolute(load<Floats>(x + b * block + i)));
            tops[b] = largest(top);
        }
        const Floats d = load<Floats>(tops) / all(127.0F);
        store(inverses, select(d != all(0.0F), all(1.0F) / d, all(0.0F)));
        store(halves, to_half(d));
        for (int b = 0; b < count; ++b, x += block, out += bytes) {
            const std::uint16_t half = static_cast<std::uint16_t>(halves[b]);
            __builtin_memcpy(out, &half, 2);
            const Floats inverse = all(inverses[b]);
            for (int i = 0; i < block; i += lanes) store_bytes(out + 2 + i, round_away(load<Floats>(x + i) * inverse));
        }
    }
}

void decode(const DecodeJob& job, std::size_t first, std::size_t end) {
    for (std::size_t at = first; at < end; at += lanes) {
        const int count = static_cast<int>(fewer(lanes, end - at));
        const std::uint8_t* data = job.data + at * bytes;
        float* out = job.out + at * block;
        std::int32_t halves[lanes] = {};
        float scales[lanes];
        for (int b = 0; b < count; ++b) __builtin_memcpy(&halves[b], data + b * bytes, 2);
        store(scales, from_half(load<Ints>(halves)));
        for (int b = 0; b < count; ++b, data += bytes, out += block)
            for (int i = 0; i < block; i += lanes)
                store(out + i, to_floats(load_bytes(data + 2 + i)) * all(scales[b]));
    }
}

}  // namespace q8_0
}  // namespace
}  // namespace bitloss
