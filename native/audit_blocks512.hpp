#pragma once
// Which blocks of Q8_0 a cast changes, with AVX-512: as audit_blocks.hpp, where the definition is. Here all blocks are
// compared: of F16 words and of float32 values nearly every one holds a value that is changed.
//
// Scales come first, of 16 blocks side by side; the blocks whose stored scale stays are listed, and of those quants are
// compared.
#include "audit_blocks.hpp"

namespace bitloss {
namespace {
namespace audit {

constexpr std::size_t listed_blocks = 128;  // at most at once: they stay in the first-level cache

// Blocks to compare, and of both ways the scale, or 1/scale.
struct BlockList {
    std::size_t count = 0;
    std::int32_t at[listed_blocks + 16];
    float before[listed_blocks + 16], after[listed_blocks + 16];

    BITLOSS_INLINE void add(__mmask16 which, std::size_t first, const Floats& by, const Floats& other) {
        const __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        const __m512i here = _mm512_add_epi32(index, _mm512_set1_epi32(static_cast<int>(first)));
        // compressed in a register: to memory it is slow on some machines
        _mm512_storeu_si512(at + count, _mm512_maskz_compress_epi32(which, here));
        _mm512_storeu_ps(before + count, _mm512_maskz_compress_ps(which, by.part[0]));
        _mm512_storeu_ps(after + count, _mm512_maskz_compress_ps(which, other.part[0]));
        count += static_cast<unsigned>(__builtin_popcount(which));
    }
};

BITLOSS_INLINE Floats half_to_floats(__m256i x) {
    Floats out;
    out.part[0] = _mm512_maskz_cvtph_ps(0xffff, x);
    return out;
}
BITLOSS_INLINE __m256i floats_to_half(const Floats& x) {
    return _mm512_maskz_cvtps_ph(0xffff, x.part[0], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
BITLOSS_INLINE Floats scale_of(const Floats& top) { return top / all(127.0F); }
BITLOSS_INLINE Floats inverse_of(const Floats& scale) {
    const Floats raw = all(1.0F) / scale;
    return select(raw < all(__builtin_inff()), raw, all(0.0F));
}
// Scales to 1/scale; some behind the last too.
BITLOSS_INLINE void invert(float* scales, std::size_t count) {
    for (std::size_t i = 0; i < count; i += 16) store(scales + i, inverse_of(load<Floats>(scales + i)));
}
// Of sizes: round_away of codec_q8_0.hpp.
BITLOSS_INLINE Ints quants(const Floats& size, const Floats& inverse) {
    return to_ints(size * inverse + all(0x1.fffffep-2F));
}
BITLOSS_INLINE __mmask16 first_of(std::size_t count) {
    return static_cast<__mmask16>(count < 16 ? (1U << count) - 1 : 0xffffU);
}
BITLOSS_INLINE unsigned number(unsigned mask) { return static_cast<unsigned>(__builtin_popcount(mask)); }

// How many of the blocks listed have other quants; size(block, i) gives the magnitudes from i on, cast(size) casts.
template <class Size, class Cast>
BITLOSS_INLINE std::uint64_t other_quants_of(const BlockList& list, const Size& size, const Cast& cast) {
    std::uint64_t changed = 0;
    for (std::size_t i = 0; i < list.count; ++i) {
        const Floats before = all(list.before[i]), after = all(list.after[i]);
        const std::size_t block = static_cast<std::size_t>(list.at[i]);
        const Floats low = size(block, 0), high = size(block, 16);
        const __mmask16 in_low = _mm512_cmpneq_epi32_mask((__m512i)quants(low, before).part[0],
                                                          (__m512i)quants(cast(low), after).part[0]);
        const __mmask16 in_high = _mm512_cmpneq_epi32_mask((__m512i)quants(high, before).part[0],
                                                           (__m512i)quants(cast(high), after).part[0]);
        changed += _kortestz_mask16_u8(in_low, in_high) == 0;
    }
    return changed;
}

BITLOSS_INLINE Floats through_f16(const Floats& size) { return half_to_floats(floats_to_half(size)); }
BITLOSS_INLINE Floats through_bf16(const Floats& size) { return as_bf16(bits(size)); }

// n is at most listed_blocks.
[[gnu::noinline]] void list_floats(const float* x, std::size_t n, BlockTally& into, BlockList& f16, BlockList& bf16) {
    std::uint64_t not_finite = 0;
    for (std::size_t at = 0; at < n; at += 16) {
        const std::size_t count = n - at < 16 ? n - at : 16;
        const Ints raw = top_bits(x + at * group, count);
        const Floats top = from_bits(raw), scale = scale_of(top), inverse = inverse_of(scale);
        const __mmask16 finite = first_of(count) & (raw < all(infinity)).part[0];
        not_finite += count - number(finite);
        const __m256i stored = floats_to_half(scale);
        const auto compare = [&](const Floats& cast, std::int32_t overflow, ThroughTally& through, BlockList& list) {
            const Floats other = scale_of(cast);
            const __mmask16 kept = finite & (raw < all(overflow)).part[0];
            const __mmask16 same = kept & _mm256_cmpeq_epi16_mask(stored, floats_to_half(other));
            through.overflowed += number(finite & static_cast<__mmask16>(~kept));
            through.changed += number(finite & static_cast<__mmask16>(~same));
            list.add(same, at, inverse, other);
        };
        compare(through_f16(top), f16_overflow, into.f16, f16);
        compare(through_bf16(top), bf16_overflow, into.bf16, bf16);
    }
    invert(f16.after, f16.count);
    invert(bf16.after, bf16.count);
    into.not_finite += not_finite;
}

// Compares n blocks.
void blocks_of_floats512(const float* x, std::size_t n, BlockTally& into) {
    into.blocks += n;
    for (std::size_t at = 0; at < n; at += listed_blocks, x += listed_blocks * group) {
        BlockList f16, bf16;
        list_floats(x, n - at < listed_blocks ? n - at : listed_blocks, into, f16, bf16);
        const auto size = [&](std::size_t block, std::size_t i) { return absolute(load<Floats>(x + block * group + i)); };
        into.f16.changed += other_quants_of(f16, size, through_f16);
        into.bf16.changed += other_quants_of(bf16, size, through_bf16);
    }
}

// The largest magnitude of each lane's block of F16 words.
BITLOSS_INLINE __m512i top_words(const std::uint16_t* x, std::size_t count) {
    __m512i top[16];
    for (std::size_t b = 0; b < 16; ++b)
        top[b] = _mm512_loadu_si512(x + (b < count ? b : count - 1) * group) & _mm512_set1_epi16(0x7fff);
    largest_of_each(top, [](__m512i a, __m512i b) { return _mm512_max_epu16(a, b); });
    return _mm512_max_epu16(top[0], _mm512_maskz_srli_epi32(0xffff, top[0], 16)) & _mm512_set1_epi32(0xffff);
}

// n is at most listed_blocks. No magnitude of F16 overflows in BF16.
[[gnu::noinline]] void list_halves(const std::uint16_t* x, std::size_t n, BlockTally& into, BlockList& list) {
    std::uint64_t not_finite = 0, changed = 0;
    for (std::size_t at = 0; at < n; at += 16) {
        const std::size_t count = n - at < 16 ? n - at : 16;
        const __m512i words = top_words(x + at * group, count);
        const Floats top = half_to_floats(_mm512_maskz_cvtepi32_epi16(0xffff, words));
        const __mmask16 finite = first_of(count) & _mm512_cmplt_epu32_mask(words, _mm512_set1_epi32(0x7c00));
        const Floats scale = scale_of(top), other = scale_of(through_bf16(top));
        const __mmask16 same = finite & _mm256_cmpeq_epi16_mask(floats_to_half(scale), floats_to_half(other));
        not_finite += count - number(finite);
        changed += number(finite & static_cast<__mmask16>(~same));
        list.add(same, at, scale, other);
    }
    invert(list.before, list.count);
    invert(list.after, list.count);
    into.not_finite += not_finite;
    into.bf16.changed += changed;
}

void blocks_of_halves(const std::uint16_t* x, std::size_t n, BlockTally& into) {
    into.blocks += n;
    for (std::size_t at = 0; at < n; at += listed_blocks, x += listed_blocks * group) {
        BlockList list;
        list_halves(x, n - at < listed_blocks ? n - at : listed_blocks, into, list);
        const auto size = [&](std::size_t block, std::size_t i) {
            const __m256i words = _mm256_loadu_si256((const __m256i*)(x + block * group + i));
            return half_to_floats(words & _mm256_set1_epi16(0x7fff));
        };
        into.bf16.changed += other_quants_of(list, size, through_bf16);
    }
}

}  // namespace audit
}  // namespace
}  // namespace bitloss
