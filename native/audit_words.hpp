#pragma once
// Counting words of 16 bits for one instruction set. See lanes.hpp for how it is compiled.
//
// A word is plain when no record is broken by it: its magnitude lies between the smallest and the largest seen, in a
// range where all that has to be known of it is the exponent, and whether BF16 changes it; and when its error and its
// share of error in BF16 cannot exceed those of words seen before. The others are looked at one by one: they are few.
#include "audit.hpp"
#include "lanes.hpp"

namespace bitloss {
namespace {
namespace audit {

constexpr int wide = BITLOSS_VECTOR_BYTES == 16 ? 16 : 32;  // two vectors of 32 bytes are as fast as one of 64
constexpr std::size_t piece = 128 * wide;                   // values at a time: they stay in the first-level cache

typedef std::int16_t Words __attribute__((vector_size(wide)));
typedef std::uint8_t Bytes __attribute__((vector_size(wide)));
constexpr std::size_t words_of = wide / 2;
constexpr std::size_t set = 4 * words_of;  // words looked at together

template <class V>
BITLOSS_INLINE V load_plain(const void* from) {
    V v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
}

BITLOSS_INLINE Words every(int x) { return static_cast<std::int16_t>(x) - Words{}; }
BITLOSS_INLINE Bytes every_byte(unsigned x) { return static_cast<std::uint8_t>(x) - Bytes{}; }

#if BITLOSS_VECTOR_BYTES > 16
BITLOSS_INLINE bool some(Words m) { return !_mm256_testz_si256((__m256i)m, (__m256i)m); }
BITLOSS_INLINE std::uint64_t marks(Bytes m) { return static_cast<std::uint32_t>(_mm256_movemask_epi8((__m256i)m)); }
// Packing works in halves of 16 bytes: byte i is of this word.
BITLOSS_INLINE std::size_t word_at(std::size_t i) { return (i & 39) | (i & 8) << 1 | (i & 16) >> 1; }
BITLOSS_INLINE Bytes low_bytes(Words a, Words b) { return (Bytes)_mm256_packus_epi16((__m256i)a, (__m256i)b); }
BITLOSS_INLINE std::uint64_t sum(Bytes x) {
    const __m256i sums = _mm256_sad_epu8((__m256i)x, _mm256_setzero_si256());
    const __m128i two = _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    return static_cast<std::uint64_t>(_mm_cvtsi128_si64(_mm_add_epi64(two, _mm_unpackhi_epi64(two, two))));
}
#elif defined(__SSE2__)
BITLOSS_INLINE bool some(Words m) { return _mm_movemask_epi8((__m128i)m) != 0; }
BITLOSS_INLINE std::uint64_t marks(Bytes m) { return static_cast<std::uint32_t>(_mm_movemask_epi8((__m128i)m)); }
BITLOSS_INLINE std::size_t word_at(std::size_t i) { return i; }
BITLOSS_INLINE Bytes low_bytes(Words a, Words b) { return (Bytes)_mm_packus_epi16((__m128i)a, (__m128i)b); }
BITLOSS_INLINE std::uint64_t sum(Bytes x) {
    const __m128i sums = _mm_sad_epu8((__m128i)x, _mm_setzero_si128());
    return static_cast<std::uint64_t>(_mm_cvtsi128_si64(_mm_add_epi64(sums, _mm_unpackhi_epi64(sums, sums))));
}
#else
BITLOSS_INLINE bool some(Words m) {
    std::uint64_t two[2];
    __builtin_memcpy(two, &m, sizeof two);
    return (two[0] | two[1]) != 0;
}
BITLOSS_INLINE std::uint64_t marks(Bytes m) {
    std::uint64_t out = 0;
    for (int i = 0; i < wide; ++i) out |= (m[i] != 0 ? 1ULL : 0ULL) << i;
    return out;
}
BITLOSS_INLINE std::size_t word_at(std::size_t i) { return i; }
BITLOSS_INLINE Bytes low_bytes(Words a, Words b) {
    Bytes out;
    for (int i = 0; i < wide / 2; ++i) {
        out[i] = static_cast<std::uint8_t>(a[i]);
        out[i + wide / 2] = static_cast<std::uint8_t>(b[i]);
    }
    return out;
}
BITLOSS_INLINE std::uint64_t sum(Bytes x) {
    std::uint64_t total = 0;
    for (int i = 0; i < wide; ++i) total += x[i];
    return total;
}
#endif

BITLOSS_INLINE std::uint64_t sum(Words x) {
    std::uint64_t total = 0;
    for (std::size_t i = 0; i < words_of; ++i) total += static_cast<std::uint16_t>(x[i]);
    return total;
}

// --- bytes ---------------------------------------------------------------------------------------------

// Counts how often each of eight values occurs; n is a multiple of `wide` and at most a piece.
BITLOSS_INLINE std::uint64_t count_eight(const std::uint8_t* x, std::size_t n, const std::uint8_t (&values)[8],
                                         std::uint64_t* counts) {
    Bytes found[8] = {}, value[8];
    for (int k = 0; k < 8; ++k) value[k] = every_byte(values[k]);
    for (std::size_t i = 0; i < n; i += wide) {
        const Bytes here = load_plain<Bytes>(x + i);
        for (int k = 0; k < 8; ++k) found[k] -= (Bytes)(here == value[k]);
    }
    std::uint64_t total = 0;
    for (int k = 0; k < 8; ++k) {
        const std::uint64_t each = sum(found[k]);
        counts[values[k]] += each;
        total += each;
    }
    return total;
}

// Counts how often each value occurs in n bytes, a multiple of `wide` and at most a piece. Zero and the 15 values up to
// `top` are counted side by side, others one by one.
[[gnu::noinline]] void count_bytes(const std::uint8_t* x, std::size_t n, unsigned top, std::uint64_t* counts) {
    if (top < 15) top = 15;
    std::uint8_t values[8] = {0};
    for (unsigned k = 1; k < 8; ++k) values[k] = static_cast<std::uint8_t>(top + 1 - k);
    std::uint64_t found = count_eight(x, n, values, counts);
    if (found == n) return;
    for (unsigned k = 0; k < 8; ++k) values[k] = static_cast<std::uint8_t>(top - 7 - k);
    found += count_eight(x, n, values, counts);
    if (found == n) return;
    const Bytes low = every_byte(top - 14), range = every_byte(14), zero = every_byte(0);
    for (std::size_t i = 0; i < n; i += wide) {
        const Bytes here = load_plain<Bytes>(x + i), outside = (Bytes)((here - low) > range) & (Bytes)(here != zero);
        if (some((Words)outside))
            for (std::size_t j = 0; j < wide; ++j)
                if (outside[j] != 0) ++counts[x[i + j]];
    }
}

// --- words ---------------------------------------------------------------------------------------------

// 11 bits of mantissa; the smallest normal number, the largest. BF16 has 8: it changes those of which the last three
// bits are not zero, most those where they are 4 (by half a place of BF16, a larger share the smaller the mantissa is).
struct F16 {
    static constexpr int shift = 10, smallest = 0x0400, largest = 0x7bff, below = 0;
    static constexpr bool changes = true;
};
// Down to 2^-17 the last of the 8 bits of mantissa is one that F16's subnormals have; up to 65280.
struct BF16 {
    static constexpr int shift = 7, smallest = 0x3700, largest = 0x477f, below = 0x387c;  // the least >= 6e-5
    static constexpr bool changes = false;
};

template <class Format>
BITLOSS_INLINE void count_odd(std::uint16_t word, WordTally& tally, std::uint32_t* table) {
    ++table[word];
    --tally.plain;
    const std::int16_t size = static_cast<std::int16_t>(word & 0x7fff);
    if (size < Format::smallest || size > Format::largest) return;
    if (size < tally.smallest) tally.smallest = size;
    if (size > tally.largest) tally.largest = size;
    if (!Format::changes || (size & 7) != 4) return;
    const std::int16_t top = static_cast<std::int16_t>(size | 0x03ff), mantissa = size & 0x03ff;
    if (top > tally.top_of_error) tally.top_of_error = top;
    if (mantissa < tally.mantissa_of_share) tally.mantissa_of_share = mantissa;
}

// n is a multiple of a set. `Settled`: errors need not be looked at, as none can be larger than those seen.
template <class Format, bool Settled>
[[gnu::noinline]] void tally_words(const std::uint16_t* x, std::size_t n, WordTally& tally, std::uint32_t* table) {
    alignas(64) std::uint8_t fields[piece];
    Words same = {}, below = {};
    Words smallest = every(tally.smallest), largest = every(tally.largest);
    Words top_of_error = every(tally.top_of_error), mantissa_of_share = every(tally.mantissa_of_share);
    const Words zero = {};
    for (std::size_t at = 0; at < n; at += set) {
        Words size[4], odd[4], plain[4];
        for (std::size_t v = 0; v < 4; ++v) {
            size[v] = load_plain<Words>(x + at + v * words_of) & every(0x7fff);
            odd[v] = (size[v] > largest) | ((size[v] < smallest) & (size[v] != zero));
            if constexpr (Format::changes) {
                plain[v] = (size[v] & every(7)) == zero;
                if constexpr (!Settled)
                    odd[v] |= ((size[v] > top_of_error) | ((size[v] & every(0x03ff)) < mantissa_of_share)) & ~plain[v];
            }
        }
        if (some(odd[0] | odd[1] | odd[2] | odd[3])) {
            // 255 from -1: packed as signed words they are 0
            const Bytes low = low_bytes(odd[0] & every(255), odd[1] & every(255));
            const Bytes high = low_bytes(odd[2] & every(255), odd[3] & every(255));
            for (std::uint64_t left = marks(low) | marks(high) << wide; left != 0; left &= left - 1)
                count_odd<Format>(x[at + word_at(static_cast<unsigned>(__builtin_ctzll(left)))], tally, table);
            smallest = every(tally.smallest);
            largest = every(tally.largest);
            top_of_error = every(tally.top_of_error);
            mantissa_of_share = every(tally.mantissa_of_share);
            for (std::size_t v = 0; v < 4; ++v) {
                size[v] &= ~odd[v];  // as a zero, taken off at the end
                if constexpr (Format::changes) plain[v] |= odd[v];
            }
        }
        for (std::size_t v = 0; v < 4; ++v) {
            if constexpr (Format::changes) same -= plain[v];
            if constexpr (Format::below > 0) below -= size[v] < every(Format::below);
            size[v] >>= Format::shift;
        }
        for (std::size_t v = 0; v < 4; v += 2) {
            const Bytes two = low_bytes(size[v], size[v + 1]);
            __builtin_memcpy(fields + at + v * words_of, &two, wide);
        }
    }
    tally.plain += n;
    if constexpr (Format::changes) tally.changed += n - sum(same);
    if constexpr (Format::below > 0) tally.below += sum(below);
    count_bytes(fields, n, tally.largest < 0 ? 0U : static_cast<unsigned>(tally.largest >> Format::shift), tally.fields);
}

template <class Format>
void tally_words(const std::uint16_t* x, std::size_t n, WordTally& tally, std::uint32_t* table) {
    const std::uint64_t plain = tally.plain, zeros = tally.fields[0], looked_at = n / set * set;
    std::size_t at = 0;
    while (at < looked_at) {
        const std::size_t some = looked_at - at < piece ? looked_at - at : piece;
        if (Format::changes && (tally.largest > tally.top_of_error || tally.mantissa_of_share > 4))
            tally_words<Format, false>(x + at, some, tally, table);
        else
            tally_words<Format, true>(x + at, some, tally, table);
        at += some;
    }
    const std::uint64_t odd = looked_at - (tally.plain - plain);
    tally.fields[0] -= odd;
    if (Format::below > 0) tally.below -= odd + (tally.fields[0] - zeros);
    for (; at < n; ++at) ++table[x[at]];
}

}  // namespace audit
}  // namespace
}  // namespace bitloss
