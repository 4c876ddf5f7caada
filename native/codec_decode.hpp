#pragma once
// Decoders: a block at a time, its weights side by side. Definitions in src/bitloss/quantize/reference (legacy.py,
// iq4.py, k_decode.py). A product and a sum are rounded one after the other, and a NaN scale passes through them with
// its bits.
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

// The low and the high halves of 16 bytes, as 32 integers given to `put(at, integers)` a vector at a time.
template <class Put>
BITLOSS_INLINE void nibbles(const Byte* q, const Put& put) {
    for (int j = 0; j < 16; j += lanes) {
        const Ints both = load_unsigned(q + j);
        put(j, both & all(15));
        put(j + 16, both >> 4);
    }
}

struct OneBit {
    std::int32_t at[32];
    constexpr OneBit() : at() {
        for (int j = 0; j < 32; ++j) at[j] = static_cast<std::int32_t>(1U << j);
    }
};
constexpr OneBit one_bit;

template <int Levels, bool HasLow>
BITLOSS_INLINE void legacy(const Byte* block, float* y) {
    constexpr int head = HasLow ? 4 : 2, high = Levels == 32 ? 4 : 0;
    const Floats d = all(half(block)), m = all(HasLow ? half(block + 2) : 0.0F);
    std::int32_t fifths = 0;
    __builtin_memcpy(&fifths, block + head, high);
    nibbles(block + head + high, [&](int at, Ints q) {
        if constexpr (Levels == 32)
            q = select((all(fifths) & load<Ints>(one_bit.at + at)) == all(0), q, q | all(16));
        if constexpr (!HasLow) q = q - all(Levels / 2);
        const Floats x = to_floats(q) * d;
        store(y + at, HasLow ? x + m : x);
    });
}

BITLOSS_INLINE void q8_0(const Byte* block, float* y) {
    const Floats d = all(half(block));
    for (int j = 0; j < 32; j += lanes) store(y + j, to_floats(load_bytes(block + 2 + j)) * d);
}

constexpr std::int8_t iq4_levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

BITLOSS_INLINE void iq4_group(const Byte* q, float scale, float* y) {
    Byte levels[32];
#if BITLOSS_VECTOR_BYTES > 16
    const __m128i packed = _mm_loadu_si128((const __m128i*)q), mask = _mm_set1_epi8(15), table = _mm_loadu_si128((const __m128i*)iq4_levels);
    const __m128i low = _mm_shuffle_epi8(table, _mm_and_si128(packed, mask));
    const __m128i high = _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16(packed, 4), mask));
    __builtin_memcpy(levels, &low, 16);
    __builtin_memcpy(levels + 16, &high, 16);
#else
    for (int j = 0; j < 16; ++j) {
        levels[j] = static_cast<Byte>(iq4_levels[q[j] & 15]);
        levels[j + 16] = static_cast<Byte>(iq4_levels[q[j] >> 4]);
    }
#endif
    for (int j = 0; j < 32; j += lanes) store(y + j, all(scale) * to_floats(load_bytes(levels + j)));
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

// Bytes side by side: quants are put together before they are widened.
typedef Byte Bytes32 __attribute__((vector_size(32)));

BITLOSS_INLINE void get(Bytes32& to, const Byte* from) { __builtin_memcpy(&to, from, 32); }
BITLOSS_INLINE void put(Byte* to, const Bytes32& from) { __builtin_memcpy(to, &from, 32); }

// 16 scale bytes (scale low, minimum high), 64 of quants, half d, half m.
BITLOSS_INLINE void q2_k(const Byte* block, float* y) {
    const float d = half(block + 80), m = half(block + 82);
    Byte q[256];
    for (int g = 0; g < 8; ++g) {
        Bytes32 four;
        get(four, block + 16 + g / 4 * 32);
        put(q + 32 * g, (four >> static_cast<Byte>(g % 4 * 2)) & 3);
    }
    for (int g = 0; g < 16; ++g) {
        const Floats scale = all(d * static_cast<float>(block[g] & 15));
        const Floats low = all(m * static_cast<float>(block[g] >> 4));
        for (int j = 16 * g; j < 16 * g + 16; j += lanes) store(y + j, scale * to_floats(load_unsigned(q + j)) - low);
    }
}

// 32 bytes of third bits, 64 of quants, 12 of 16 six-bit scales, half d.
BITLOSS_INLINE void q3_k(const Byte* block, float* y) {
    const float d = half(block + 108);
    const Byte* packed = block + 96;
    Byte q[256];
    Bytes32 third;
    get(third, block);
    for (int g = 0; g < 8; ++g) {
        Bytes32 four;
        get(four, block + 32 + g / 4 * 32);
        put(q + 32 * g, (((four >> static_cast<Byte>(g % 4 * 2)) & 3) | (((third >> static_cast<Byte>(g)) & 1) << 2)) - 4);
    }
    for (int g = 0; g < 16; ++g) {
        const int low = g < 8 ? packed[g] & 15 : packed[g - 8] >> 4, high = packed[8 + g % 4] >> g / 4 * 2 & 3;
        const Floats scale = all(d * static_cast<float>((low | high << 4) - 32));
        for (int j = 16 * g; j < 16 * g + 16; j += lanes) store(y + j, scale * to_floats(load_bytes(q + j)));
    }
}

// Scales and minima (six bits each) of the eight groups of Q4_K and Q5_K, of 12 bytes; as bytes of four words.
struct SixBits {
    std::uint32_t word[4];

    BITLOSS_INLINE explicit SixBits(const Byte* packed) {
        std::uint32_t first, second, third;
        __builtin_memcpy(&first, packed, 4);
        __builtin_memcpy(&second, packed + 4, 4);
        __builtin_memcpy(&third, packed + 8, 4);
        word[0] = first & 0x3f3f3f3fU;
        word[1] = (third & 0x0f0f0f0fU) | (first >> 6 & 0x03030303U) << 4;
        word[2] = second & 0x3f3f3f3fU;
        word[3] = (third >> 4 & 0x0f0f0f0fU) | (second >> 6 & 0x03030303U) << 4;
    }
    BITLOSS_INLINE float scale(int group) const { return at(group); }
    BITLOSS_INLINE float low(int group) const { return at(group + 8); }

  private:
    BITLOSS_INLINE float at(int i) const { return static_cast<float>(word[i / 4] >> i % 4 * 8 & 63); }
};

// What the 16 quants of a group of Q4_K stand for.
struct Sixteen {
#if BITLOSS_VECTOR_BYTES == 64 && BITLOSS_LANES == 16
    machine::Floats table;

    BITLOSS_INLINE Sixteen(float scale, float low) {
        const machine::Floats q = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        table = scale * q - low;
    }
    BITLOSS_INLINE Floats of(const Ints& q) const { return lookup(table, q); }  // the last four bits
#else
    Floats scale, low;

    BITLOSS_INLINE Sixteen(float scale_, float low_) : scale(all(scale_)), low(all(low_)) {}
    BITLOSS_INLINE Floats of(const Ints& q) const { return scale * to_floats(q & all(15)) - low; }
#endif
};

// half d, half m, 12 bytes of scales, 128 of quants.
BITLOSS_INLINE void q4_k(const Byte* block, float* y) {
    const float d = half(block), m = half(block + 2);
    const SixBits six(block + 4);
    for (int g = 0; g < 8; g += 2, y += 64) {
        const Sixteen first(d * six.scale(g), m * six.low(g)), second(d * six.scale(g + 1), m * six.low(g + 1));
        for (int j = 0; j < 32; j += lanes) {
            const Ints both = load_unsigned(block + 16 + 16 * g + j);
            store(y + j, first.of(both));
            store(y + 32 + j, second.of(both >> 4));
        }
    }
}

// half d, half m, 12 bytes of scales, 32 of fifth bits, 128 of quants.
BITLOSS_INLINE void q5_k(const Byte* block, float* y) {
    const float d = half(block), m = half(block + 2);
    const SixBits six(block + 4);
    Byte q[256];
    Bytes32 fifth;
    get(fifth, block + 16);
    for (int g = 0; g < 8; g += 2) {
        Bytes32 both;
        get(both, block + 48 + 16 * g);
        put(q + 32 * g, (both & 15) | (((fifth >> static_cast<Byte>(g)) & 1) << 4));
        put(q + 32 * g + 32, (both >> 4) | (((fifth >> static_cast<Byte>(g + 1)) & 1) << 4));
    }
    for (int g = 0; g < 8; ++g) {
        const Floats scale = all(d * six.scale(g)), low = all(m * six.low(g));
        for (int j = 32 * g; j < 32 * g + 32; j += lanes) store(y + j, scale * to_floats(load_unsigned(q + j)) - low);
    }
}

// 128 bytes of low bits, 64 of high ones, 16 signed scales, half d.
BITLOSS_INLINE void q6_k(const Byte* block, float* y) {
    const float d = half(block + 208);
    Byte q[256];
    for (int at = 0; at < 2; ++at) {
        Bytes32 first, second, high;
        get(first, block + 64 * at);
        get(second, block + 64 * at + 32);
        get(high, block + 128 + 32 * at);
        put(q + 128 * at, ((first & 15) | ((high & 3) << 4)) - 32);
        put(q + 128 * at + 32, ((second & 15) | (((high >> 2) & 3) << 4)) - 32);
        put(q + 128 * at + 64, ((first >> 4) | (((high >> 4) & 3) << 4)) - 32);
        put(q + 128 * at + 96, ((second >> 4) | ((high >> 6) << 4)) - 32);
    }
    for (int g = 0; g < 16; ++g) {
        const Floats scale = all(d * static_cast<float>(static_cast<std::int8_t>(block[192 + g])));
        for (int j = 16 * g; j < 16 * g + 16; j += lanes) store(y + j, scale * to_floats(load_bytes(q + j)));
    }
}

template <std::size_t Size, std::size_t Bytes, void (*Decode)(const Byte*, float*)>
void blocks(const DecodeJob& job, std::size_t first, std::size_t end) {
    for (std::size_t at = first; at < end; ++at) Decode(job.data + at * Bytes, job.out + at * Size);
}

// --- floats of 16 bits -------------------------------------------------------------------------------

template <class Load>
BITLOSS_INLINE void halves(const DecodeJob& job, std::size_t first, std::size_t end, const Load& load) {
    std::size_t at = first;
    for (; at + lanes <= end; at += lanes) store(job.out + at, load(job.data + 2 * at));
    if (at == end) return;
    Byte last[2 * lanes] = {};
    float values[lanes];
    __builtin_memcpy(last, job.data + 2 * at, 2 * (end - at));
    store(values, load(last));
    __builtin_memcpy(job.out + at, values, 4 * (end - at));
}

void f16(const DecodeJob& job, std::size_t first, std::size_t end) {
    halves(job, first, end, [](const Byte* from) { return load_halves(from); });
}
void bf16(const DecodeJob& job, std::size_t first, std::size_t end) {
    halves(job, first, end, [](const Byte* from) { return from_bits(load_words(from) << 16); });
}

}  // namespace decoding
}  // namespace
}  // namespace bitloss
