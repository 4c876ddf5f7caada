#pragma once
// Where quants and scales lie in a block, bit by bit. Layouts: src/bitloss/quantize/reference. See lanes.hpp for how it is
// compiled; the loops are left to the compiler.
#include "compare.hpp"
#include "lanes.hpp"

namespace bitloss {
namespace {
namespace fields {

using Byte = std::uint8_t;

BITLOSS_INLINE Byte either(const Byte* two) { return static_cast<Byte>(two[0] | two[1]); }

// n bytes of two quants each: the low halves first, then the high ones.
BITLOSS_INLINE void nibbles(const Byte* from, int n, Byte* q) {
    for (int j = 0; j < n; ++j) q[j] = from[j] & 15;
    for (int j = 0; j < n; ++j) q[j + n] = from[j] >> 4;
}

// Half d, [half m,] [fifth bits,] 16 bytes of nibbles.
template <bool HasLow, bool HasFifth>
BITLOSS_INLINE void legacy(const Byte* x, Byte* q, Byte* s) {
    constexpr int head = HasLow ? 4 : 2, high = HasFifth ? 4 : 0;
    s[0] = either(x);
    if constexpr (HasLow) s[1] = either(x + 2);
    nibbles(x + head + high, 16, q);
    if constexpr (HasFifth)
        for (int j = 0; j < 32; ++j) q[j] = static_cast<Byte>(q[j] | (x[head + j / 8] >> j % 8 & 1) << 4);
}

BITLOSS_INLINE void q8_0(const Byte* x, Byte* q, Byte* s) {
    s[0] = either(x);
    for (int j = 0; j < 32; ++j) q[j] = x[2 + j];
}

BITLOSS_INLINE void mxfp4(const Byte* x, Byte* q, Byte* s) {
    s[0] = x[0];
    nibbles(x + 1, 16, q);
}

// Two bits each of 256 quants, of 64 bytes.
BITLOSS_INLINE void pairs(const Byte* from, Byte* q) {
    for (int half = 0; half < 2; ++half)
        for (int k = 0; k < 4; ++k)
            for (int j = 0; j < 32; ++j) q[128 * half + 32 * k + j] = from[32 * half + j] >> 2 * k & 3;
}

// Bit k of byte j belongs to quant 32·k + j: put at `shift`.
BITLOSS_INLINE void bits(const Byte* from, int shift, Byte* q) {
    for (int k = 0; k < 8; ++k)
        for (int j = 0; j < 32; ++j) q[32 * k + j] = static_cast<Byte>(q[32 * k + j] | (from[j] >> k & 1) << shift);
}

BITLOSS_INLINE void q2_k(const Byte* x, Byte* q, Byte* s) {
    s[0] = either(x + 80);
    s[1] = either(x + 82);
    nibbles(x, 16, s + 2);
    pairs(x + 16, q);
}

BITLOSS_INLINE void q3_k(const Byte* x, Byte* q, Byte* s) {
    s[0] = either(x + 108);
    const Byte* packed = x + 96;
    nibbles(packed, 8, s + 1);
    for (int g = 0; g < 16; ++g) s[1 + g] = static_cast<Byte>(s[1 + g] | (packed[8 + g % 4] >> g / 4 * 2 & 3) << 4);
    pairs(x + 32, q);
    bits(x, 2, q);
}

template <bool HasFifth>
BITLOSS_INLINE void q45_k(const Byte* x, Byte* q, Byte* s) {
    s[0] = either(x);
    s[1] = either(x + 2);
    const Byte *packed = x + 4, *quants = x + (HasFifth ? 48 : 16);
    for (int g = 0; g < 4; ++g) {
        s[2 + g] = packed[g] & 63;
        s[10 + g] = packed[4 + g] & 63;
        s[6 + g] = static_cast<Byte>((packed[8 + g] & 15) | packed[g] >> 6 << 4);
        s[14 + g] = static_cast<Byte>(packed[8 + g] >> 4 | packed[4 + g] >> 6 << 4);
    }
    for (int k = 0; k < 4; ++k) nibbles(quants + 32 * k, 32, q + 64 * k);
    if constexpr (HasFifth) bits(x + 16, 4, q);
}

BITLOSS_INLINE void q6_k(const Byte* x, Byte* q, Byte* s) {
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

BITLOSS_INLINE void iq4_xs(const Byte* x, Byte* q, Byte* s) {
    s[0] = either(x);
    for (int g = 0; g < 8; ++g)
        s[1 + g] = static_cast<Byte>((x[4 + g / 2] >> 4 * (g % 2) & 15) | (x[2 + g / 4] >> 2 * (g % 4) & 3) << 4);
    for (int g = 0; g < 8; ++g) nibbles(x + 8 + 16 * g, 16, q + 32 * g);
}

template <std::size_t N>
BITLOSS_INLINE unsigned not_zero(const Byte* codes) {
    Byte some[N];
    unsigned count = 0;
    for (std::size_t i = 0; i < N; ++i) some[i] = codes[i] != 0;
    for (std::size_t i = 0; i < N; ++i) count += some[i];
    return count;
}

// `Codes` writes each quant's and each scale's bits (of a scale of two bytes those of both ORed together). Bits only
// move, so what comes out of a ^ b is zero where the two are equal.
template <std::size_t Bytes, std::size_t Quants, std::size_t Scales, void (*Codes)(const Byte*, Byte*, Byte*)>
void count(const Byte* a, const Byte* b, std::size_t n, std::uint64_t& quants, std::uint64_t& scales) {
    Byte x[Bytes], q[Quants] = {}, s[Scales] = {};
    for (std::size_t at = 0; at < n; ++at, a += Bytes, b += Bytes) {
        Byte some = 0;
        for (std::size_t i = 0; i < Bytes; ++i) some = static_cast<Byte>(some | (x[i] = a[i] ^ b[i]));
        if (some == 0) continue;
        Codes(x, q, s);
        quants += not_zero<Quants>(q);
        scales += not_zero<Scales>(s);
    }
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
