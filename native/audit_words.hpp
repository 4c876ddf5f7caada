#pragma once
// Counting words of 16 bits for one instruction set. See lanes.hpp for how it is compiled.
//
// A word is plain when no record is broken by it: its magnitude lies between the smallest and the largest seen, in a
// range where all that has to be known of it is the exponent, and whether BF16 changes it; and when its error and its
// share of error in BF16 cannot exceed those of words seen before. The others are looked at one by one: they are few.
#include "audit.hpp"
#include "narrow.hpp"

namespace bitloss {
namespace {
namespace audit {

using namespace narrow;

constexpr std::size_t piece = 128 * wide;  // values at a time: they stay in the first-level cache
constexpr std::size_t set = 4 * words_of;  // words looked at together

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

// Whether no error can be larger than those seen, for words between the smallest and the largest.
template <class Format>
BITLOSS_INLINE bool settled(const WordTally& tally) {
    return !Format::changes || (tally.largest <= tally.top_of_error && tally.mantissa_of_share <= 4);
}

// n is a multiple of a set. `Settled`: errors need not be looked at; where a larger word ends that, it stops behind its
// set. Returns how many words were counted.
template <class Format, bool Settled>
[[gnu::noinline]] std::size_t tally_words(const std::uint16_t* x, std::size_t n, WordTally& tally,
                                          std::uint32_t* table) {
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
            if (Settled && !settled<Format>(tally)) n = at + set;
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
    return n;
}

template <class Format>
void tally_words(const std::uint16_t* x, std::size_t n, WordTally& tally, std::uint32_t* table) {
    const std::uint64_t plain = tally.plain, zeros = tally.fields[0], looked_at = n / set * set;
    std::size_t at = 0;
    while (at < looked_at) {
        const std::size_t some = looked_at - at < piece ? looked_at - at : piece;
        at += settled<Format>(tally) ? tally_words<Format, true>(x + at, some, tally, table)
                                     : tally_words<Format, false>(x + at, some, tally, table);
    }
    const std::uint64_t odd = looked_at - (tally.plain - plain);
    tally.fields[0] -= odd;
    if (Format::below > 0) tally.below -= odd + (tally.fields[0] - zeros);
    for (; at < n; ++at) ++table[x[at]];
}

}  // namespace audit
}  // namespace
}  // namespace bitloss
