#pragma once
// Counting words of 16 bits with AVX-512, in vectors of 32: as audit_words.hpp, which counts the pieces that come first.
//
// A vector is counted whole, and its odd words are noted; what it counted of these is taken back one by one.
#include "audit_blocks512.hpp"
#include "audit_onehot.hpp"
#include "audit_words.hpp"

namespace bitloss {
namespace {
namespace audit {

constexpr std::size_t words_of_512 = 32;                           // a block of Q8_0
constexpr std::size_t step_words = words_of_512 * group_vectors;  // looked at together

// Has the machine fetch to the second-level cache what comes 16 kB later: across a page it would not do so by itself.
BITLOSS_INLINE void fetch_ahead(const void* from) {
    _mm_prefetch(static_cast<const char*>(from) + 16384, _MM_HINT_T1);
}

BITLOSS_INLINE __m512i load_sizes(const std::uint16_t* x) {
    return _mm512_loadu_si512(x) & _mm512_set1_epi16(0x7fff);
}

// `FromMemory`: the words are not in a cache yet.
template <class Format, bool FromMemory>
class WordsOf512 {
    static constexpr bool rest = !Format::changes;

public:
    WordsOf512(WordTally& into, std::uint32_t* odd_words, BlockTally* q8_0)
        : tally(into), table(odd_words), blocks(q8_0) {}

    // Counts n words, at most a piece: whole blocks, where blocks are counted.
    void add(const std::uint16_t* x, std::size_t n) {
        const std::size_t steps = ready() ? n / step_words : 0;
        if (steps > 0) {
            if (is_far())
                look<true>(x, steps);
            else
                look<false>(x, steps);
        }
        const std::size_t at = steps * step_words;
        if (at < n) tally_words<Format>(x + at, n - at, tally, table);
        if (blocks == nullptr) return;
        if constexpr (Format::changes) {
            blocks_of_halves(x, n / group, *blocks);
        } else {
            blocks->blocks += steps * group_vectors;
            if (at < n) blocks_of_words<Format>(x + at, (n - at) / group, *blocks);
        }
    }

    // Must be called at the end.
    void finish() {
        fields.move_to(tally.fields);
        compare_noted();
    }

private:
    WordTally& tally;
    std::uint32_t* table;
    BlockTally* blocks;
    FieldCounts<rest> fields;
    std::size_t noted = 0;
    float values[most_blocks * group];

    // Whether a word between the smallest and the largest cannot set a record, and fields between can be told apart.
    bool ready() {
        if (tally.largest < 0) return false;
        if constexpr (Format::changes) return settled<Format>(tally);
        const int first = (tally.largest >> Format::shift) - 14;
        if (first != fields.first) {
            fields.move_to(tally.fields);
            fields.first = first;
        }
        return (tally.smallest >> Format::shift) >= first - 16;
    }
    bool is_far() const {
        if constexpr (Format::changes) return (tally.largest >> Format::shift) > 15;
        return (tally.smallest >> Format::shift) < fields.first;
    }

    template <bool Far>
    [[gnu::noinline]] void look(const std::uint16_t* x, std::size_t steps) {
        std::uint32_t odd[group_vectors * most_steps];
        __m512i near_carries[most_steps], far_carries[most_steps];
        for (std::size_t s = steps; s < most_steps; ++s) near_carries[s] = far_carries[s] = _mm512_setzero_si512();
        OneHotSum near = fields.near.lowest(), far = fields.far.lowest();
        const __m512i first = _mm512_set1_epi16(static_cast<std::int16_t>(fields.first));
        const __m512i far_first = _mm512_set1_epi16(static_cast<std::int16_t>(rest ? fields.first - 16 : 16));
        // a zero less one is larger than all
        const __m512i smallest = _mm512_set1_epi16(static_cast<std::int16_t>(tally.smallest - 1));
        __m512i largest = _mm512_setzero_si512();
        std::uint64_t counted = 0;
        for (std::size_t s = 0; s < steps; ++s) {
            const std::uint16_t* from = x + s * step_words;
            std::uint32_t* odd_here = odd + s * group_vectors;
            near_carries[s] = near.add([&](std::size_t v) __attribute__((always_inline)) {
                if constexpr (FromMemory) fetch_ahead(from + v * words_of_512);
                const __m512i size = load_sizes(from + v * words_of_512);
                const __m512i less_one = _mm512_sub_epi16(size, _mm512_set1_epi16(1));
                largest = _mm512_max_epu16(largest, size);
                odd_here[v] = _mm512_cmplt_epu16_mask(less_one, smallest);
                const __mmask32 some = Format::changes
                                           ? _mm512_test_epi16_mask(size, _mm512_set1_epi16(7))
                                           : _mm512_cmplt_epu16_mask(less_one, _mm512_set1_epi16(Format::below - 1));
                counted += static_cast<unsigned>(__builtin_popcount(some));
                return near_bit<rest>(_mm512_srli_epi16(size, Format::shift), first);
            });
            if constexpr (Far)
                far_carries[s] = far.add([&](std::size_t v) __attribute__((always_inline)) {
                    return far_bit(_mm512_srli_epi16(load_sizes(from + v * words_of_512), Format::shift), far_first);
                });
        }
        fields.near.add(near, near_carries);
        if constexpr (Far) fields.far.add(far, far_carries);
        (Format::changes ? tally.changed : tally.below) += counted;
        tally.plain += steps * step_words;

        const __m512i bound = _mm512_set1_epi16(tally.largest);
        if (_mm512_cmpgt_epu16_mask(largest, bound) != 0)
            for (std::size_t v = 0; v < steps * group_vectors; ++v)
                odd[v] |= _mm512_cmpgt_epu16_mask(load_sizes(x + v * words_of_512), bound);
        take_odd(x, odd, steps * group_vectors, Far);
    }

    void take_odd(const std::uint16_t* x, const std::uint32_t* odd, std::size_t vectors, bool two) {
        static_assert(group_vectors * most_steps / 2 == 64);
        std::uint64_t pairs = 0;  // of vectors that have one: a branch for each would be guessed wrong for most of them
        for (std::size_t v = 0; v < vectors; v += 16) {
            const __m512i here = _mm512_loadu_si512(odd + v);
            pairs |= std::uint64_t{_mm512_test_epi64_mask(here, here)} << (v / 2);
        }
        for (; pairs != 0; pairs &= pairs - 1) {
            const std::size_t v = 2 * static_cast<unsigned>(__builtin_ctzll(pairs));
            std::uint64_t left;
            __builtin_memcpy(&left, odd + v, sizeof left);
            if (rest && blocks != nullptr) {
                if (static_cast<std::uint32_t>(left) != 0) note(x + v * words_of_512);
                if (left >> 32 != 0) note(x + (v + 1) * words_of_512);
            }
            for (; left != 0; left &= left - 1) take(x[v * words_of_512 + static_cast<unsigned>(__builtin_ctzll(left))], two);
        }
    }

    BITLOSS_INLINE void take(std::uint16_t word, bool two) {
        const int size = word & 0x7fff, place = fields.place(size >> Format::shift, two);
        if (place >= 0) --tally.fields[place];
        if (Format::changes) tally.changed -= (size & 7) != 0;
        if (Format::below > 0) tally.below -= size < Format::below;
        count_odd<Format>(word, tally, table);
    }

    // Keeps a block that the cast may change, to be compared with others.
    void note(const std::uint16_t* x) {
        for (std::size_t i = 0; i < group; i += lanes)
            store(values + noted * group + i, load_words(reinterpret_cast<const std::uint8_t*>(x + i)) << 16);
        if (++noted == most_blocks) compare_noted();
    }
    void compare_noted() {
        if (noted > 0) compare_blocks<true, false>(values, noted, *blocks);
        noted = 0;
    }
};

// Counts n words, and blocks where they are asked for.
template <class Format>
void count_words(const std::uint16_t* x, std::size_t n, WordTally& tally, std::uint32_t* table, BlockTally* blocks) {
    WordsOf512<Format, true> counter(tally, table, blocks);
    for (std::size_t at = 0; at < n; at += piece) counter.add(x + at, n - at < piece ? n - at : piece);
    counter.finish();
}

}  // namespace audit
}  // namespace
}  // namespace bitloss
