#pragma once
// The cast kernels for one instruction set. See lanes.hpp for how it is compiled.
#include "casts.hpp"
#include "lanes.hpp"

namespace bitloss {
namespace {
namespace casts {

constexpr std::size_t piece = 1U << 16;  // values between two times of adding up the counters of the lanes

constexpr std::int32_t infinity = 0x7f800000;

// The low 16 bits of every lane.
BITLOSS_INLINE void store_words(std::uint8_t* to, const Ints& x) {
    for (int p = 0; p < parts; ++p) {
        std::uint8_t* at = to + p * (2 * lanes / parts);
#if BITLOSS_VECTOR_BYTES == 64
        _mm256_storeu_si256((__m256i*)at, _mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)x.part[p]));
#elif BITLOSS_VECTOR_BYTES == 32
        const __m256i low = _mm256_and_si256((__m256i)x.part[p], _mm256_set1_epi32(0xffff));
        // Packed within halves of 128 bits: the quarters wanted are the first and the third.
        const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), 0x08);
        _mm_storeu_si128((__m128i*)at, _mm256_castsi256_si128(packed));
#elif defined(__SSE2__)
        // Signed saturation leaves a number alone whose sign was drawn out of its 16 bits.
        const __m128i drawn = _mm_srai_epi32(_mm_slli_epi32((__m128i)x.part[p], 16), 16);
        _mm_storel_epi64((__m128i*)at, _mm_packs_epi32(drawn, drawn));
#else
        for (int i = 0; i < lanes / parts; ++i) {
            const auto word = static_cast<std::uint16_t>(x.part[p][i]);
            __builtin_memcpy(at + 2 * i, &word, 2);
        }
#endif
    }
}

// Float32 -> BF16 bits, ties to even; NaN becomes the sign and 0x7fc0.
BITLOSS_INLINE Ints to_brain(const Floats& x) {
    const Ints raw = bits(x), size = raw & all(0x7fffffff), sign = (raw >> 16) & all(0x8000);
    const Ints rounded = (size + all(0x7fff) + ((size >> 16) & all(1))) >> 16;
    return select(all(infinity) < size, all(0x7fc0), rounded) | sign;
}

struct F32 {
    static constexpr std::size_t bytes = 4;
    BITLOSS_INLINE static Floats read(const std::uint8_t* from) { return load<Floats>(from); }
    BITLOSS_INLINE static void write(std::uint8_t* to, const Floats& x) { store(to, x); }
};
struct F16 {
    static constexpr std::size_t bytes = 2;
    static constexpr std::int32_t overflow = 0x477ff000, zero = 0x33000000;  // >= 65520, <= 2^-25
    BITLOSS_INLINE static Floats read(const std::uint8_t* from) { return from_half(load_words(from)); }
    BITLOSS_INLINE static Ints round(const Floats& x) { return to_half(x); }
    BITLOSS_INLINE static Floats value(const Ints& words) { return from_half(words); }
};
struct BF16 {
    static constexpr std::size_t bytes = 2;
    static constexpr std::int32_t overflow = 0x7f7f8000, zero = 0x00008000;  // >= 2^128 - 2^119, <= 2^-134
    BITLOSS_INLINE static Floats read(const std::uint8_t* from) { return from_bits(load_words(from) << 16); }
    BITLOSS_INLINE static Ints round(const Floats& x) { return to_brain(x); }
    BITLOSS_INLINE static Floats value(const Ints& words) { return from_bits(words << 16); }
};

struct Tally {
    Ints not_finite = all(0), changed = all(0), overflowed = all(0), zeroed = all(0);

    void flush(CastCounts& into) const {
        into.not_finite += sum(not_finite);
        into.changed += sum(changed);
        into.overflowed += sum(overflowed);
        into.zeroed += sum(zeroed);
    }
};

// Masks are 0 or -1: subtracting counts.
BITLOSS_INLINE void count(Ints& counter, const Mask& m) { counter = counter - as_ints(m); }

BITLOSS_INLINE Mask not_finite(const Floats& x) { return all(infinity - 1) < (bits(x) & all(0x7fffffff)); }

// One vector of values. Widening and copying change nothing.
template <class From, class To>
BITLOSS_INLINE void cast_vector(const std::uint8_t* from, std::uint8_t* to, Tally& tally) {
    const Floats x = From::read(from);
    count(tally.not_finite, not_finite(x));
    if constexpr (To::bytes == 4) {
        To::write(to, x);
    } else {
        const Ints words = To::round(x);
        store_words(to, words);
        const Mask changed = To::value(words) != x;
        if (!any(changed)) return;  // often: then no end of the range was met either
        const Ints size = bits(x) & all(0x7fffffff);
        const Mask finite = size < all(infinity);
        count(tally.changed, changed & finite);
        count(tally.overflowed, (all(To::overflow - 1) < size) & finite);
        count(tally.zeroed, (size < all(To::zero + 1)) & (all(0) < size));
    }
}

template <class Type>
BITLOSS_INLINE void copy_vector(const std::uint8_t* from, std::uint8_t* to, Tally& tally) {
    count(tally.not_finite, not_finite(Type::read(from)));
    __builtin_memcpy(to, from, lanes * Type::bytes);
}

template <class From, class To>
struct Same {
    static constexpr bool value = false;
};
template <class Type>
struct Same<Type, Type> {
    static constexpr bool value = true;
};

template <class From, class To>
BITLOSS_INLINE void step(const std::uint8_t* from, std::uint8_t* to, Tally& tally) {
    if constexpr (Same<From, To>::value)
        copy_vector<From>(from, to, tally);
    else
        cast_vector<From, To>(from, to, tally);
}

template <class From, class To>
void cast(const std::uint8_t* from, std::uint8_t* to, std::size_t n, CastCounts& counts) {
    std::size_t at = 0;
    while (n - at >= lanes) {
        Tally tally;
        const std::size_t whole = (n - at < piece ? n - at : piece) / lanes * lanes;
        for (const std::size_t end = at + whole; at < end; at += lanes)
            step<From, To>(from + at * From::bytes, to + at * To::bytes, tally);
        tally.flush(counts);
    }
    if (at == n) return;
    // Zeros behind the last values: they count for nothing.
    std::uint8_t rest[lanes * From::bytes] = {}, out[lanes * To::bytes];
    __builtin_memcpy(rest, from + at * From::bytes, (n - at) * From::bytes);
    Tally tally;
    step<From, To>(rest, out, tally);
    tally.flush(counts);
    __builtin_memcpy(to + at * To::bytes, out, (n - at) * To::bytes);
}

template <class From>
constexpr void fill(CastKernel (&row)[float_types]) {
    row[0] = cast<From, F32>;
    row[1] = cast<From, F16>;
    row[2] = cast<From, BF16>;
}

constexpr CastKernels table() {
    CastKernels kernels{};
    fill<F32>(kernels.of[0]);
    fill<F16>(kernels.of[1]);
    fill<BF16>(kernels.of[2]);
    return kernels;
}

}  // namespace casts
}  // namespace
}  // namespace bitloss
