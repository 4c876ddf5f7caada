#pragma once
// Decoders: a block at a time, its weights side by side. Definitions in src/bitloss/quantize/reference (legacy.py,
// iq4.py, k_quants.py). Plain loops of fixed length, which the compiler turns into vectors; a product and a sum are
// rounded one after the other, and a NaN scale passes through them with its bits.
#include "codec.hpp"
#include "lanes.hpp"

namespace bitloss {
namespace {
namespace decoding {

using Byte = std::uint8_t;

BITLOSS_INLINE float half(const Byte* from) {
    const std::uint32_t raw = static_cast<std::uint32_t>(from[0]) | static_cast<std::uint32_t>(from[1]) << 8;
    const std::uint32_t size = raw & 0x7fffU, sign = (raw & 0x8000U) << 16;
    float value;
    std::uint32_t bits;
    if (size < 0x0400U) {
        value = static_cast<float>(size) * 0x1p-24F;
        __builtin_memcpy(&bits, &value, 4);
    } else if (size < 0x7c00U) {
        bits = (size << 13) + 0x38000000U;
    } else {
        bits = size << 13 | 0x7f800000U | (size > 0x7c00U ? 0x00400000U : 0U);
    }
    bits |= sign;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}

// --- blocks of 32 ------------------------------------------------------------------------------------

// y = level * d + low for the 32 quants of 16 bytes, byte j holding quant j low and j + 16 high.
template <class Level>
BITLOSS_INLINE void nibbles(const Byte* q, float* y, const Level& level) {
    for (int j = 0; j < 16; ++j) y[j] = level(q[j] & 15, j);
    for (int j = 0; j < 16; ++j) y[j + 16] = level(q[j] >> 4, j + 16);
}

template <int Levels, bool HasLow>
BITLOSS_INLINE void legacy(const Byte* block, float* y) {
    constexpr int head = HasLow ? 4 : 2, high = Levels == 32 ? 4 : 0;
    const float d = half(block), m = HasLow ? half(block + 2) : 0.0F;
    std::int32_t fifths[32] = {};
    if constexpr (Levels == 32) {
        std::uint32_t packed;
        __builtin_memcpy(&packed, block + head, 4);
        for (int j = 0; j < 32; ++j) fifths[j] = static_cast<std::int32_t>(packed >> j & 1U) << 4;
    }
    nibbles(block + head + high, y, [&](int four, int j) {
        const int q = (four | fifths[j]) - (HasLow ? 0 : Levels / 2);
        const float x = static_cast<float>(q) * d;
        return HasLow ? x + m : x;
    });
}

constexpr std::int8_t iq4_levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

BITLOSS_INLINE void iq4_group(const Byte* q, float d, float* y) {
    std::int8_t v[32];
    for (int j = 0; j < 16; ++j) {
        v[j] = iq4_levels[q[j] & 15];
        v[j + 16] = iq4_levels[q[j] >> 4];
    }
    for (int j = 0; j < 32; ++j) y[j] = d * static_cast<float>(v[j]);
}

BITLOSS_INLINE void iq4_nl(const Byte* block, float* y) { iq4_group(block + 2, half(block), y); }

BITLOSS_INLINE void iq4_xs(const Byte* block, float* y) {
    const float d = half(block);
    const int high = block[2] | block[3] << 8;
    for (int g = 0; g < 8; ++g) {
        const int low = block[4 + g / 2] >> 4 * (g % 2) & 15, l = low | (high >> 2 * g & 3) << 4;
        iq4_group(block + 8 + 16 * g, d * static_cast<float>(l - 32), y + 32 * g);
    }
}

// --- blocks of 256 -----------------------------------------------------------------------------------

// 16 scale bytes (scale low, minimum high), 64 of quants, half d, half m.
BITLOSS_INLINE void q2_k(const Byte* block, float* y) {
    const float d = half(block + 80), m = half(block + 82);
    for (int g = 0; g < 16; ++g, y += 16) {
        const float scale = d * static_cast<float>(block[g] & 15), low = m * static_cast<float>(block[g] >> 4);
        const Byte* q = block + 16 + g / 8 * 32 + g % 2 * 16;
        const int shift = g % 8 / 2 * 2;
        for (int j = 0; j < 16; ++j) y[j] = scale * static_cast<float>(q[j] >> shift & 3) - low;
    }
}

// 32 bytes of third bits, 64 of quants, 12 of 16 six-bit scales, half d.
BITLOSS_INLINE void q3_k(const Byte* block, float* y) {
    const float d = half(block + 108);
    const Byte* packed = block + 96;
    for (int g = 0; g < 16; ++g, y += 16) {
        const int low = g < 8 ? packed[g] & 15 : packed[g - 8] >> 4, high = packed[8 + g % 4] >> g / 4 * 2 & 3;
        const float scale = d * static_cast<float>((low | high << 4) - 32);
        const Byte *q = block + 32 + g / 8 * 32 + g % 2 * 16, *third = block + g % 2 * 16;
        const int shift = g % 8 / 2 * 2, bit = g / 2;
        for (int j = 0; j < 16; ++j)
            y[j] = scale * static_cast<float>((q[j] >> shift & 3) + (third[j] >> bit & 1) * 4 - 4);
    }
}

// Scale and minimum (six bits each) of group g of Q4_K and Q5_K, of 12 bytes.
struct SixBits {
    int scale, low;

    BITLOSS_INLINE SixBits(const Byte* packed, int g)
        : scale(g < 4 ? packed[g] & 63 : (packed[g + 4] & 15) | packed[g - 4] >> 6 << 4),
          low(g < 4 ? packed[g + 4] & 63 : packed[g + 4] >> 4 | packed[g] >> 6 << 4) {}
};

// half d, half m, 12 bytes of scales, [Q5_K: 32 of fifth bits,] 128 of quants.
template <bool HasFifth>
BITLOSS_INLINE void q45_k(const Byte* block, float* y) {
    const float d = half(block), m = half(block + 2);
    const Byte *fifth = block + 16, *quants = block + (HasFifth ? 48 : 16);
    for (int g = 0; g < 8; ++g, y += 32) {
        const SixBits six(block + 4, g);
        const float scale = d * static_cast<float>(six.scale), low = m * static_cast<float>(six.low);
        const Byte* q = quants + g / 2 * 32;
        const int shift = g % 2 * 4;
        for (int j = 0; j < 32; ++j) {
            int value = q[j] >> shift & 15;
            if constexpr (HasFifth) value += (fifth[j] >> g & 1) << 4;
            y[j] = scale * static_cast<float>(value) - low;
        }
    }
}

// 128 bytes of low bits, 64 of high ones, 16 signed scales, half d.
BITLOSS_INLINE void q6_k(const Byte* block, float* y) {
    const float d = half(block + 208);
    for (int g = 0; g < 16; ++g, y += 16) {
        const float scale = d * static_cast<float>(static_cast<std::int8_t>(block[192 + g]));
        const Byte* low = block + g / 8 * 64 + g % 4 * 16;
        const Byte* high = block + 128 + g / 8 * 32 + g % 2 * 16;
        const int low_shift = g % 8 / 4 * 4, high_shift = g % 8 / 2 * 2;
        for (int j = 0; j < 16; ++j) {
            const int q = (low[j] >> low_shift & 15) | (high[j] >> high_shift & 3) << 4;
            y[j] = scale * static_cast<float>(q - 32);
        }
    }
}

template <std::size_t Size, std::size_t Bytes, void (*Decode)(const Byte*, float*)>
void blocks(const DecodeJob& job, std::size_t first, std::size_t end) {
    for (std::size_t at = first; at < end; ++at) Decode(job.data + at * Bytes, job.out + at * Size);
}

// --- floats of 16 bits -------------------------------------------------------------------------------

template <class Wide>
BITLOSS_INLINE void halves(const DecodeJob& job, std::size_t first, std::size_t end, const Wide& wide) {
    std::size_t at = first;
    for (; at + lanes <= end; at += lanes) store(job.out + at, wide(load_words(job.data + 2 * at)));
    if (at == end) return;
    Byte last[2 * lanes] = {};
    float values[lanes];
    __builtin_memcpy(last, job.data + 2 * at, 2 * (end - at));
    store(values, wide(load_words(last)));
    __builtin_memcpy(job.out + at, values, 4 * (end - at));
}

void f16(const DecodeJob& job, std::size_t first, std::size_t end) {
    halves(job, first, end, [](const Ints& x) { return from_half(x); });
}
void bf16(const DecodeJob& job, std::size_t first, std::size_t end) {
    halves(job, first, end, [](const Ints& x) { return from_bits(x << 16); });
}

}  // namespace decoding
}  // namespace
}  // namespace bitloss
