#pragma once
// Counting small numbers with AVX-512: each is one bit set in a word of 16, and words are added bit by bit.
//
// Three words of equal weight are two: their exclusive or, and of double weight their majority (a carry-save adder, two
// instructions). So of 16 vectors all but the 16th part of the work is done by 15 adders (Harley and Seal; Muła, Kurz
// and Lemire, "Faster Population Counts Using AVX2 Instructions", 2018).
#include "audit.hpp"
#include "lanes.hpp"

namespace bitloss {
namespace {
namespace audit {

constexpr std::size_t group_vectors = 16;  // a step's
constexpr std::size_t most_steps = 8;      // of a piece

// low + a + b = low + 2 high.
BITLOSS_INLINE void carry_save(__m512i& high, __m512i& low, __m512i a, __m512i b) {
    const __m512i old = low;
    low = _mm512_ternarylogic_epi32(old, a, b, 0x96);
    high = _mm512_ternarylogic_epi32(old, a, b, 0xe8);
}

// The lowest levels of a sum, in registers.
struct OneHotSum {
    __m512i ones, twos, fours, eights;

    // Adds hot(0) .. hot(15); returns what goes to the level of sixteens.
    template <class Hot>
    BITLOSS_INLINE __m512i add(const Hot& hot) {
        __m512i a, b, c, d, e, f, carry;
        carry_save(a, ones, hot(0), hot(1));
        carry_save(b, ones, hot(2), hot(3));
        carry_save(c, twos, a, b);
        carry_save(a, ones, hot(4), hot(5));
        carry_save(b, ones, hot(6), hot(7));
        carry_save(d, twos, a, b);
        carry_save(e, fours, c, d);
        carry_save(a, ones, hot(8), hot(9));
        carry_save(b, ones, hot(10), hot(11));
        carry_save(c, twos, a, b);
        carry_save(a, ones, hot(12), hot(13));
        carry_save(b, ones, hot(14), hot(15));
        carry_save(d, twos, a, b);
        carry_save(f, fours, c, d);
        carry_save(carry, eights, e, f);
        return carry;
    }
};

// How often each bit was set, level by level.
struct OneHotCounts {
    static constexpr int levels = 13;
    static_assert(most_at_once / 32 < 1U << levels);  // vectors of a call
    __m512i level[levels];
    bool empty = true;

    OneHotCounts() { forget(); }
    void forget() {
        for (__m512i& each : level) each = _mm512_setzero_si512();
        empty = true;
    }
    BITLOSS_INLINE OneHotSum lowest() const { return {level[0], level[1], level[2], level[3]}; }

    // Takes a piece's sum over, and what it gave for the level of sixteens: most_steps vectors.
    void add(const OneHotSum& sum, const __m512i* sixteens) {
        empty = false;
        level[0] = sum.ones;
        level[1] = sum.twos;
        level[2] = sum.fours;
        level[3] = sum.eights;
        __m512i a, b, c, d, carry;
        carry_save(a, level[4], sixteens[0], sixteens[1]);
        carry_save(b, level[4], sixteens[2], sixteens[3]);
        carry_save(c, level[5], a, b);
        carry_save(a, level[4], sixteens[4], sixteens[5]);
        carry_save(b, level[4], sixteens[6], sixteens[7]);
        carry_save(d, level[5], a, b);
        carry_save(carry, level[6], c, d);
        for (int i = 7; i < levels; ++i) {
            const __m512i old = level[i];
            level[i] = old ^ carry;
            carry = old & carry;
        }
    }

    // Adds the counts of the 16 bits, and forgets them.
    void move_to(std::uint64_t (&counts)[16]) {
        if (empty) return;
        for (int bit = 0; bit < 16; ++bit) {
            const __m512i one = _mm512_set1_epi16(static_cast<std::int16_t>(1U << bit));
            for (int i = 0; i < levels; ++i)
                counts[bit] += static_cast<std::uint64_t>(__builtin_popcount(_mm512_test_epi16_mask(level[i], one))) << i;
        }
        forget();
    }
};

// Counts of exponent fields. The 15 fields from `first` on and all others are bits of `near`; the 16 before `first` may
// be told apart as bits of `far`. Without `Rest` the 16 fields from 0 on are near, and the next far.
template <bool Rest>
struct FieldCounts {
    OneHotCounts near, far;
    int first = 0;  // of near; of far 16 less with a rest, 16 without

    // Where a field is counted; -1: nowhere.
    int place(int field, bool two) const {
        if constexpr (!Rest) return field < (two ? 32 : 16) ? field : -1;
        return field >= first - (two ? 16 : 0) && field < first + 15 ? field : 0;
    }

    void move_to(std::uint64_t* fields) {
        std::uint64_t close[16] = {}, distant[16] = {};
        near.move_to(close);
        far.move_to(distant);
        for (int i = 0; i < 16; ++i) {
            fields[Rest && i == 15 ? 0 : first + i] += close[i];
            if (distant[i] == 0) continue;
            fields[Rest ? first - 16 + i : 16 + i] += distant[i];
            if (Rest) fields[0] -= distant[i];
        }
    }
};

// Fields in words of 16 bits as bits.
template <bool Rest>
BITLOSS_INLINE __m512i near_bit(__m512i field, __m512i first) {
    const __m512i one = _mm512_set1_epi16(1);
    if constexpr (!Rest) return _mm512_sllv_epi16(one, field);  // from 16 on: no bit
    return _mm512_sllv_epi16(one, _mm512_min_epu16(_mm512_sub_epi16(field, first), _mm512_set1_epi16(15)));
}
// `first`: of far.
BITLOSS_INLINE __m512i far_bit(__m512i field, __m512i first) {
    return _mm512_sllv_epi16(_mm512_set1_epi16(1), _mm512_sub_epi16(field, first));
}

}  // namespace audit
}  // namespace
}  // namespace bitloss
