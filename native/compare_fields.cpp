// Where quants and scales lie in a block, bit by bit. Layouts: src/bitloss/quantize/reference.
#include "compare.hpp"

namespace bitloss {
namespace {

using Byte = std::uint8_t;

Byte either(const Byte* two) { return static_cast<Byte>(two[0] | two[1]); }

// n bytes of two quants each: the low halves first, then the high ones.
void nibbles(const Byte* from, int n, Byte* q) {
    for (int j = 0; j < n; ++j) q[j] = from[j] & 15;
    for (int j = 0; j < n; ++j) q[j + n] = from[j] >> 4;
}

// Half d, [half m,] [fifth bits,] 16 bytes of nibbles.
template <bool HasLow, bool HasFifth>
void legacy(const Byte* x, Byte* q, Byte* s) {
    constexpr int head = HasLow ? 4 : 2, high = HasFifth ? 4 : 0;
    s[0] = either(x);
    if constexpr (HasLow) s[1] = either(x + 2);
    nibbles(x + head + high, 16, q);
    if constexpr (HasFifth)
        for (int j = 0; j < 32; ++j) q[j] = static_cast<Byte>(q[j] | (x[head + j / 8] >> j % 8 & 1) << 4);
}

void q8_0(const Byte* x, Byte* q, Byte* s) {
    s[0] = either(x);
    for (int j = 0; j < 32; ++j) q[j] = x[2 + j];
}

void mxfp4(const Byte* x, Byte* q, Byte* s) {
    s[0] = x[0];
    nibbles(x + 1, 16, q);
}

// Two bits each of 256 quants, of 64 bytes.
void pairs(const Byte* from, Byte* q) {
    for (int half = 0; half < 2; ++half)
        for (int k = 0; k < 4; ++k)
            for (int j = 0; j < 32; ++j) q[128 * half + 32 * k + j] = from[32 * half + j] >> 2 * k & 3;
}

// Bit k of byte j belongs to quant 32·k + j: put at `shift`.
void bits(const Byte* from, int shift, Byte* q) {
    for (int k = 0; k < 8; ++k)
        for (int j = 0; j < 32; ++j) q[32 * k + j] = static_cast<Byte>(q[32 * k + j] | (from[j] >> k & 1) << shift);
}

void q2_k(const Byte* x, Byte* q, Byte* s) {
    s[0] = either(x + 80);
    s[1] = either(x + 82);
    nibbles(x, 16, s + 2);
    pairs(x + 16, q);
}

void q3_k(const Byte* x, Byte* q, Byte* s) {
    s[0] = either(x + 108);
    const Byte* packed = x + 96;
    nibbles(packed, 8, s + 1);
    for (int g = 0; g < 16; ++g) s[1 + g] = static_cast<Byte>(s[1 + g] | (packed[8 + g % 4] >> g / 4 * 2 & 3) << 4);
    pairs(x + 32, q);
    bits(x, 2, q);
}

template <bool HasFifth>
void q45_k(const Byte* x, Byte* q, Byte* s) {
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

void q6_k(const Byte* x, Byte* q, Byte* s) {
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

void iq4_xs(const Byte* x, Byte* q, Byte* s) {
    s[0] = either(x);
    for (int g = 0; g < 8; ++g)
        s[1 + g] = static_cast<Byte>((x[4 + g / 2] >> 4 * (g % 2) & 15) | (x[2 + g / 4] >> 2 * (g % 4) & 3) << 4);
    for (int g = 0; g < 8; ++g) nibbles(x + 8 + 16 * g, 16, q + 32 * g);
}

constexpr FieldFormat formats[] = {
    {2, 18, 32, 1, legacy<false, false>},  {3, 20, 32, 2, legacy<true, false>}, {6, 22, 32, 1, legacy<false, true>},
    {7, 24, 32, 2, legacy<true, true>},    {8, 34, 32, 1, q8_0},                {10, 84, 256, 34, q2_k},
    {11, 110, 256, 17, q3_k},              {12, 144, 256, 18, q45_k<false>},    {13, 176, 256, 18, q45_k<true>},
    {14, 210, 256, 17, q6_k},              {20, 18, 32, 1, legacy<false, false>}, {23, 136, 256, 9, iq4_xs},
    {39, 17, 32, 1, mxfp4},
};

}  // namespace

FieldFormats field_formats() { return {formats, sizeof formats / sizeof formats[0]}; }

}  // namespace bitloss
