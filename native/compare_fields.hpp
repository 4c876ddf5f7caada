#pragma once
// Where quants and scales lie in a block, bit by bit. Layouts: src/bitloss/quantize/reference. See lanes.hpp for how it is
// compiled; the loops are left to the compiler.
#include "compare.hpp"
#include "narrow.hpp"

namespace bitloss {
namespace {
namespace fields {

using namespace narrow;
using Byte = std::uint8_t;

// Bytes of a ^ b: zero where the two are equal.
struct Xor {
    const Byte *a, *b;

    BITLOSS_INLINE Byte operator[](int i) const { return static_cast<Byte>(a[i] ^ b[i]); }
    BITLOSS_INLINE std::uint32_t word() const {
        std::uint32_t x, y;
        __builtin_memcpy(&x, a, 4);
        __builtin_memcpy(&y, b, 4);
        return x ^ y;
    }
    BITLOSS_INLINE Xor operator+(int by) const { return {a + by, b + by}; }
};

BITLOSS_INLINE Byte either(Xor two) { return static_cast<Byte>(two[0] | two[1]); }

typedef Byte Sixteen __attribute__((vector_size(16)));
typedef Byte Thirty2 __attribute__((vector_size(32)));
typedef std::uint32_t Fours __attribute__((vector_size(32)));
typedef std::uint64_t Eights __attribute__((vector_size(32)));

// 32 codes of 16 bytes: the low halves first, then the high ones. (In one piece: vectors written in two come late.)
BITLOSS_INLINE void nibbles(Xor from, Byte* q) {
    const Sixteen both = load_plain<Sixteen>(from.a) ^ load_plain<Sixteen>(from.b), low = both & 15, high = both >> 4;
    const Thirty2 codes = __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17,
                                                  18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31);
    __builtin_memcpy(q, &codes, 32);
}

// n bytes of two codes each: the low halves first, then the high ones.
BITLOSS_INLINE void nibbles(Xor from, int n, Byte* q) {
    for (int j = 0; j < n; ++j) q[j] = from[j] & 15;
    for (int j = 0; j < n; ++j) q[j + n] = from[j] >> 4;
}

// Half d, [half m,] [fifth bits,] 16 bytes of nibbles.
template <bool HasLow, bool HasFifth>
BITLOSS_INLINE void legacy(Xor x, Byte* q, Byte* s) {
    constexpr int head = HasLow ? 4 : 2, high = HasFifth ? 4 : 0;
    s[0] = either(x);
    if constexpr (HasLow) s[1] = either(x + 2);
    nibbles(x + head + high, q);
    if constexpr (HasFifth) {
        const Thirty2 bytes = (Thirty2)((x + head).word() + Fours{}), one = (Thirty2)(0x8040201008040201ULL + Eights{});
        const Thirty2 each = __builtin_shufflevector(bytes, bytes, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 18, 18,
                                                     18, 18, 18, 18, 18, 18, 19, 19, 19, 19, 19, 19, 19, 19);
        Thirty2 codes;
        __builtin_memcpy(&codes, q, 32);
        codes |= (Thirty2)((each & one) != 0) & 16;
        __builtin_memcpy(q, &codes, 32);
    }
}

BITLOSS_INLINE void q8_0(Xor x, Byte* q, Byte* s) {
    s[0] = either(x);
    Thirty2 codes, other;
    __builtin_memcpy(&codes, x.a + 2, 32);
    __builtin_memcpy(&other, x.b + 2, 32);
    codes ^= other;
    __builtin_memcpy(q, &codes, 32);
}

BITLOSS_INLINE void mxfp4(Xor x, Byte* q, Byte* s) {
    s[0] = x[0];
    nibbles(x + 1, q);
}

// Two bits each of 256 quants, of 64 bytes.
BITLOSS_INLINE void pairs(Xor from, Byte* q) {
    for (int half = 0; half < 2; ++half)
        for (int k = 0; k < 4; ++k)
            for (int j = 0; j < 32; ++j) q[128 * half + 32 * k + j] = from[32 * half + j] >> 2 * k & 3;
}

// Bit k of byte j belongs to quant 32·k + j: put at `shift`.
BITLOSS_INLINE void bits(Xor from, int shift, Byte* q) {
    for (int k = 0; k < 8; ++k)
        for (int j = 0; j < 32; ++j) q[32 * k + j] = static_cast<Byte>(q[32 * k + j] | (from[j] >> k & 1) << shift);
}

BITLOSS_INLINE void q2_k(Xor x, Byte* q, Byte* s) {
    s[0] = either(x + 80);
    s[1] = either(x + 82);
    nibbles(x, 16, s + 2);
    pairs(x + 16, q);
}

BITLOSS_INLINE void q3_k(Xor x, Byte* q, Byte* s) {
    s[0] = either(x + 108);
    const Xor packed = x + 96;
    nibbles(packed, 8, s + 1);
    for (int g = 0; g < 16; ++g) s[1 + g] = static_cast<Byte>(s[1 + g] | (packed[8 + g % 4] >> g / 4 * 2 & 3) << 4);
    pairs(x + 32, q);
    bits(x, 2, q);
}

template <bool HasFifth>
BITLOSS_INLINE void q45_k(Xor x, Byte* q, Byte* s) {
    s[0] = either(x);
    s[1] = either(x + 2);
    const Xor quants = x + (HasFifth ? 48 : 16);
    const std::uint32_t first = (x + 4).word(), second = (x + 8).word(), third = (x + 12).word();
    const std::uint32_t scales[4] = {first & 0x3f3f3f3fU, (third & 0x0f0f0f0fU) | (first >> 6 & 0x03030303U) << 4,
                                     second & 0x3f3f3f3fU, (third >> 4 & 0x0f0f0f0fU) | (second >> 6 & 0x03030303U) << 4};
    __builtin_memcpy(s + 2, scales, 16);
    for (int k = 0; k < 4; ++k) nibbles(quants + 32 * k, 32, q + 64 * k);
    if constexpr (HasFifth) bits(x + 16, 4, q);
}

BITLOSS_INLINE void q6_k(Xor x, Byte* q, Byte* s) {
    s[0] = either(x + 208);
    for (int g = 0; g < 16; ++g) s[1 + g] = x[192 + g];
    pairs(x + 128, q);
    for (int half = 0; half < 2; ++half)
        for (int j = 0; j < 64; ++j) {
            Byte& low = q[128 * half + j];
            Byte& high = q[128 * half + 64 + j];
            low = static_cast<Byte>(low << 4 | (x[64 * half + j] & 15));
            high = static_cast<Byte>(high << 4 | x[64 * half + j] >> 4);
        }
}

BITLOSS_INLINE void iq4_xs(Xor x, Byte* q, Byte* s) {
    s[0] = either(x);
    for (int g = 0; g < 8; ++g)
        s[1 + g] = static_cast<Byte>((x[4 + g / 2] >> 4 * (g % 2) & 15) | (x[2 + g / 4] >> 2 * (g % 4) & 3) << 4);
    for (int g = 0; g < 8; ++g) nibbles(x + 8 + 16 * g, q + 32 * g);
}

constexpr std::size_t rounded_up(std::size_t n) { return (n + wide - 1) / wide * wide; }

// Counts in each byte how many of n codes at its place are not zero; n is a multiple of `wide`. Returns all codes ORed.
BITLOSS_INLINE Bytes count_codes(const Byte* codes, std::size_t n, Bytes& count) {
    Bytes bits_set = {};
    for (std::size_t i = 0; i < n; i += wide) {
        const Bytes here = load_plain<Bytes>(codes + i);
        count -= (Bytes)(here != every_byte(0));
        bits_set |= here;
    }
    return bits_set;
}

// `Codes` writes each quant's and each scale's bits (of a scale of two bytes those of both ORed together); bits only
// move, and none is left out. Returns how many blocks differ.
template <std::size_t Size, std::size_t Quants, std::size_t Scales, void (*Codes)(Xor, Byte*, Byte*)>
std::uint64_t count(const Byte* a, const Byte* b, std::size_t n, std::uint64_t& quants, std::uint64_t& scales) {
    constexpr std::size_t most = 255 / (Quants / wide) < 24 ? 255 / (Quants / wide) : 24;  // counts fit in bytes
    constexpr std::size_t row = rounded_up(Scales);
    // Scales are looked at when those of all blocks are there: vectors of bytes just written one by one come late.
    Byte q[Quants] = {}, s[most][row] = {};
    Bytes of_quants[most];
    std::uint64_t differing = 0;
    while (n > 0) {
        const std::size_t some_blocks = n < most ? n : most;
        Bytes quant_count = {}, scale_count = {};
        for (std::size_t at = 0; at < some_blocks; ++at, a += Size, b += Size) {
            Codes({a, b}, q, s[at]);
            of_quants[at] = count_codes(q, Quants, quant_count);
        }
        for (std::size_t at = 0; at < some_blocks; ++at)
            differing += some((Words)(of_quants[at] | count_codes(s[at], row, scale_count)));
        quants += sum(quant_count);
        scales += sum(scale_count);
        n -= some_blocks;
    }
    return differing;
}

constexpr FieldFormat formats[] = {
    {2, 18, count<18, 32, 1, legacy<false, false>>},
    {3, 20, count<20, 32, 2, legacy<true, false>>},
    {6, 22, count<22, 32, 1, legacy<false, true>>},
    {7, 24, count<24, 32, 2, legacy<true, true>>},
    {8, 34, count<34, 32, 1, q8_0>},
    {10, 84, count<84, 256, 34, q2_k>},
    {11, 110, count<110, 256, 17, q3_k>},
    {12, 144, count<144, 256, 18, q45_k<false>>},
    {13, 176, count<176, 256, 18, q45_k<true>>},
    {14, 210, count<210, 256, 17, q6_k>},
    {20, 18, count<18, 32, 1, legacy<false, false>>},
    {23, 136, count<136, 256, 9, iq4_xs>},
    {39, 17, count<17, 32, 1, mxfp4>},
};

}  // namespace fields
}  // namespace
}  // namespace bitloss
