#pragma once
// Counting values of 32 bits with AVX-512, and comparing their blocks: as audit_floats.hpp, which counts the pieces that
// come first. A value is plain by the same bounds; the others are gathered, and counted in full vectors.
#include "audit_blocks512.hpp"
#include "audit_floats.hpp"
#include "audit_onehot.hpp"
#include "audit_words512.hpp"

namespace bitloss {
namespace {
namespace audit {

constexpr std::size_t pair = 32;  // values of two vectors: of one vector of words, and of a block of Q8_0

// The upper halves of two vectors, in any order.
BITLOSS_INLINE __m512i upper_words(__m512i low, __m512i high) {
    return _mm512_mask_mov_epi16(_mm512_maskz_srli_epi32(0xffff, low, 16), 0xaaaaaaaaU, high);
}

// Writes n values, a multiple of a step, as words of BF16, in any order within a pair; returns whether they all are.
BITLOSS_INLINE bool as_words_of_bf16(const float* x, std::size_t n, std::uint16_t* to) {
    for (std::size_t at = 0; at < n; at += step_words) {
        __m512i seen = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (std::size_t i = at; i < at + step_words; i += pair) {
            const __m512i low = _mm512_loadu_si512(x + i), high = _mm512_loadu_si512(x + i + 16);
            fetch_ahead(x + i);
            fetch_ahead(x + i + 16);
            seen = _mm512_ternarylogic_epi32(seen, low, high, 0xfe);  // any of three
            _mm512_storeu_si512(to + i, upper_words(low, high));
        }
        if (_mm512_test_epi32_mask(seen, _mm512_set1_epi32(bf16_lost)) != 0) return false;
    }
    return true;
}

// Likewise of F16.
BITLOSS_INLINE bool as_words_of_f16(const float* x, std::size_t n, std::uint16_t* to) {
    for (std::size_t at = 0; at < n; at += step_words) {
        __m512i seen = _mm512_setzero_si512();
#pragma GCC unroll 8
        for (std::size_t i = at; i < at + step_words; i += 16) {
            const Floats here = load<Floats>(x + i);
            fetch_ahead(x + i);
            const __m256i word = floats_to_half(here);
            _mm256_storeu_si256((__m256i*)(to + i), word);
            const __m512i back = (__m512i)half_to_floats(word).part[0];
            seen = _mm512_ternarylogic_epi32(seen, (__m512i)here.part[0], back, 0xf6);  // first, or second is not third
        }
        if (_mm512_test_epi32_mask(seen, seen) != 0) return false;
    }
    return true;
}

class FloatsOf512 {
public:
    explicit FloatsOf512(FloatTally& into) : tally(into) {}

    // Counts n values, a multiple of a step and at most a piece.
    void add(const float* x, std::size_t n) {
        const int top = (tally.largest < rule_high ? tally.largest : rule_high) >> 23;
        if (top < f16_normal >> 23 || small) {  // hardly a value will be plain
            const std::size_t plain = small ? tally_piece<true>(x, n, tally) : tally_piece<false>(x, n, tally);
            small = plain < n / lanes / 64 && top >= f16_normal >> 23;
            return;
        }
        if (top - 14 != fields.first) {
            fields.move_to(tally.fields);
            fields.first = top - 14;
        }
        // Plain fields are from 113 to 142: at most 30, of 31 that can be told apart.
        const bool two = (tally.smallest > f16_normal ? tally.smallest : f16_normal) >> 23 < fields.first;
        const std::size_t odd = two ? look<true>(x, n / step_words) : look<false>(x, n / step_words);
        small = odd > n / 2;
    }

    // Must be called at the end.
    void finish() { fields.move_to(tally.fields); }

private:
    FloatTally& tally;
    FieldCounts<true> fields;
    bool small = false;

    // Fields of a pair of sizes, in any order.
    BITLOSS_INLINE static __m512i fields_of(const float* x) {
        const Ints low = bits(load<Floats>(x)) & all(0x7fffffff), high = bits(load<Floats>(x + 16)) & all(0x7fffffff);
        return _mm512_mask_mov_epi16((__m512i)(low >> 23).part[0], 0xaaaaaaaaU, (__m512i)(high >> 7).part[0]);
    }

    // Returns how many are not plain.
    template <bool Far>
    [[gnu::noinline]] std::size_t look(const float* x, std::size_t steps) {
        std::uint16_t plain[2 * group_vectors * most_steps];
        __m512i near_carries[most_steps], far_carries[most_steps];
        for (std::size_t s = steps; s < most_steps; ++s) near_carries[s] = far_carries[s] = _mm512_setzero_si512();
        OneHotSum near = fields.near.lowest(), far = fields.far.lowest();
        const __m512i first = _mm512_set1_epi16(static_cast<std::int16_t>(fields.first));
        const __m512i far_first = _mm512_set1_epi16(static_cast<std::int16_t>(fields.first - 16));
        Bounds bounds;
        bounds.set(tally);
        const __m512i above = (__m512i)(bounds.low + all(1)).part[0];
        const __m512i range = (__m512i)select(bounds.low < bounds.high, bounds.high - bounds.low - all(1), all(0)).part[0];
        const __m512i lost = _mm512_set1_epi32(f16_lost), part = _mm512_set1_epi32(mantissa);
        const __m512i shift = (__m512i)bounds.shift.part[0], end = (__m512i)bounds.end.part[0];
        for (std::size_t s = 0; s < steps; ++s) {
            const float* from = x + s * step_words;
            std::uint16_t* plain_here = plain + 2 * s * group_vectors;
            near_carries[s] = near.add([&](std::size_t v) __attribute__((always_inline)) {
                for (std::size_t i = 0; i < 2; ++i) {
                    fetch_ahead(from + v * pair + 16 * i);
                    const __m512i size =
                        _mm512_loadu_si512(from + v * pair + 16 * i) & _mm512_set1_epi32(0x7fffffff);
                    __mmask16 is = _mm512_cmplt_epu32_mask(_mm512_sub_epi32(size, above), range);
                    is = _mm512_mask_test_epi32_mask(is, size, lost);
                    is = _mm512_mask_cmplt_epu32_mask(is, _mm512_add_epi32(size, shift) & part, end);
                    plain_here[2 * v + i] = is;
                }
                return near_bit<true>(fields_of(from + v * pair), first);
            });
            if constexpr (Far)
                far_carries[s] = far.add([&](std::size_t v) __attribute__((always_inline)) {
                    return far_bit(fields_of(from + v * pair), far_first);
                });
        }
        fields.near.add(near, near_carries);
        if constexpr (Far) fields.far.add(far, far_carries);
        tally.values += steps * step_words;
        const std::size_t odd = take_odd(x, plain, 2 * steps * group_vectors, Far, bounds);
        tally.f16.changed += steps * step_words - odd;
        tally.bf16.changed += steps * step_words - odd;
        return odd;
    }

    std::size_t take_odd(const float* x, const std::uint16_t* plain, std::size_t vectors, bool two, Bounds& bounds) {
        float odd[piece + 16];
        std::size_t count = 0;
        const __m512i every = _mm512_set1_epi16(-1);
        for (std::size_t v = 0; v < vectors; v += 32) {
            // over those that have one: a branch for each vector would be guessed wrong for most of them
            std::uint32_t left = _mm512_cmpneq_epi16_mask(_mm512_loadu_si512(plain + v), every);
            for (; left != 0; left &= left - 1) {
                const std::size_t at = v + static_cast<unsigned>(__builtin_ctz(left));
                const __mmask16 which = static_cast<__mmask16>(~plain[at]);
                _mm512_storeu_ps(odd + count, _mm512_maskz_compress_ps(which, _mm512_loadu_ps(x + at * lanes)));
                count += number(which);
            }
        }
        _mm512_storeu_ps(odd + count, _mm512_setzero_ps());
        const Ints first = all(fields.first - (two ? 16 : 0)), last = all(fields.first + 14);
        Changed changed;
        for (std::size_t i = 0; i < count; i += lanes) {
            const Ints size = bits(load<Floats>(odd + i)) & all(0x7fffffff), field = size >> 23;
            if (any(((field < first) & (all(0) < field)) | (last < field))) place_fields(size, two);
            if (!count_small(size, bounds, changed)) {
                count_in_full(odd + i, tally);
                bounds.set(tally);
            }
        }
        tally.below += sum(changed.below);
        tally.f16.changed += sum(changed.f16);
        tally.bf16.changed += sum(changed.bf16);
        return count;
    }

    // Of fields that are not told apart: counted as 0 so far.
    [[gnu::noinline]] void place_fields(const Ints& size, bool two) {
        std::int32_t each[lanes];
        store(each, size);
        for (const std::int32_t one : each) {
            if (fields.place(one >> 23, two) != 0) continue;
            --tally.fields[0];
            ++tally.fields[one >> 23];
        }
    }
};

// Counts n values, and blocks where they are asked for.
void count_floats(const float* x, std::size_t n, FloatTally& tally, WordTally& bf16, std::uint32_t* bf16_table,
                  WordTally& f16, std::uint32_t* f16_table, BlockTally* blocks) {
    alignas(64) std::uint16_t as_words[piece];
    WordsOf512<BF16, false> in_bf16(bf16, bf16_table, blocks);
    WordsOf512<F16, false> in_f16(f16, f16_table, blocks);
    FloatsOf512 floats(tally);
    while (n >= step_words) {
        const std::size_t some = (n < piece ? n : piece) / step_words * step_words;
        if (as_words_of_bf16(x, some, as_words)) {
            in_bf16.add(as_words, some);
        } else if (as_words_of_f16(x, some, as_words)) {
            in_f16.add(as_words, some);
        } else {
            floats.add(x, some);
            if (blocks != nullptr) blocks_of_floats512(x, some / group, *blocks);
        }
        x += some;
        n -= some;
    }
    in_bf16.finish();
    in_f16.finish();
    floats.finish();
    tally_floats(x, n, tally, bf16, bf16_table, f16, f16_table);
    if (blocks != nullptr) blocks_of_floats(x, n / group, *blocks);
}

}  // namespace audit
}  // namespace
}  // namespace bitloss
