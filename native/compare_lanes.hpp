#pragma once
// Comparisons for one instruction set. See lanes.hpp for how it is compiled.
#include "compare.hpp"
#include "compare_fields.hpp"
#include "lanes.hpp"

namespace bitloss {
namespace {
namespace compare {

constexpr std::int32_t infinity = 0x7f800000;

typedef double Doubles __attribute__((vector_size(BITLOSS_VECTOR_BYTES)));

// Σ x², in float64: products of two float32 are exact there.
struct Squares {
    Doubles low[parts] = {}, high[parts] = {};

    BITLOSS_INLINE static void add_to(Doubles& sum, Doubles x) {
#if BITLOSS_VECTOR_BYTES == 64
        sum = (Doubles)_mm512_fmadd_pd((__m512d)x, (__m512d)x, (__m512d)sum);
#else
        sum += x * x;
#endif
    }
    // By intrinsics: __builtin_convertvector takes vectors apart one by one (GCC 12).
    BITLOSS_INLINE void add(const Floats& x) {
        for (int p = 0; p < parts; ++p) {
#if BITLOSS_VECTOR_BYTES == 64
            const __m512 v = (__m512)x.part[p];
            add_to(low[p], (Doubles)_mm512_maskz_cvtps_pd(0xff, _mm512_maskz_extractf32x8_ps(0xff, v, 0)));
            add_to(high[p], (Doubles)_mm512_maskz_cvtps_pd(0xff, _mm512_maskz_extractf32x8_ps(0xff, v, 1)));
#elif BITLOSS_VECTOR_BYTES == 32
            const __m256 v = (__m256)x.part[p];
            add_to(low[p], (Doubles)_mm256_cvtps_pd(_mm256_castps256_ps128(v)));
            add_to(high[p], (Doubles)_mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)));
#elif defined(__SSE2__)
            const __m128 v = (__m128)x.part[p];
            add_to(low[p], (Doubles)_mm_cvtps_pd(v));
            add_to(high[p], (Doubles)_mm_cvtps_pd(_mm_movehl_ps(v, v)));
#else
            add_to(low[p], Doubles{x.part[p][0], x.part[p][1]});
            add_to(high[p], Doubles{x.part[p][2], x.part[p][3]});
#endif
        }
    }
    double sum() const {
        double total = 0.0;
        for (int p = 0; p < parts; ++p)
            for (int i = 0; i < BITLOSS_VECTOR_BYTES / 8; ++i) total += low[p][i] + high[p][i];
        return total;
    }
};

void count_odd(float x, Odd& odd) {
    std::uint32_t raw;
    __builtin_memcpy(&raw, &x, 4);
    const std::uint32_t size = raw & 0x7fffffffU;
    if (size > static_cast<std::uint32_t>(infinity)) ++odd.nan;
    if (size == static_cast<std::uint32_t>(infinity)) ++(raw >> 31 ? odd.down : odd.up);
}

// A pair, whatever it is.
BITLOSS_INLINE void one_pair(float a, float b, Distance& into) {
    const double by = static_cast<double>(a) - static_cast<double>(b);
    into.differing += a != b && (a == a || b == b);
    if (by - by != 0.0) {
        count_odd(a, into.a);
        count_odd(b, into.b);
        ++into.left_out;
    } else {
        into.squares += by * by;
        const double size = __builtin_fabs(by);
        into.largest = into.largest > size ? into.largest : size;
    }
}

// What pairs of vectors tell while all differences are numbers.
struct Pairs {
    Ints differing = all(0), largest = all(0);  // bits of magnitudes: infinity and NaN are the largest
    Squares squares;

    BITLOSS_INLINE void add(const Floats& a, const Floats& b) {
        const Floats by = a - b;
        differing = add_one(differing, by != all(0.0F));
        largest = larger(largest, bits(by) & all(0x7fffffff));
        squares.add(by);
    }
    // Returns false, and adds nothing, where a difference is no number: a value is not, or float32 cannot hold it.
    BITLOSS_INLINE bool add_to(Distance& into) const {
        if (any(all(infinity - 1) < largest)) return false;
        std::int32_t each[lanes];
        store(each, differing);
        for (int i = 0; i < lanes; ++i) into.differing += static_cast<std::uint32_t>(each[i]);
        const double top = static_cast<double>(::bitloss::largest(from_bits(largest)));
        into.squares += squares.sum();
        into.largest = into.largest > top ? into.largest : top;
        return true;
    }
};

constexpr std::size_t together = 1024;  // pairs: few enough to look at them one by one if they have to be

// n pairs, a multiple of the lanes.
void whole(const float* a, const float* b, std::size_t n, Distance& into) {
    for (std::size_t at = 0; at < n; at += together) {
        const std::size_t end = n - at < together ? n : at + together;
        Pairs pairs;
        for (std::size_t i = at; i < end; i += lanes) pairs.add(load<Floats>(a + i), load<Floats>(b + i));
        if (pairs.add_to(into)) continue;
        for (std::size_t i = at; i < end; ++i) one_pair(a[i], b[i], into);
    }
}

void distance(const float* a, const float* b, std::size_t n, Distance& into) {
    const std::size_t most = n / lanes * lanes;
    whole(a, b, most, into);
    if (most == n) return;
    float left[lanes] = {}, right[lanes] = {};  // zeros behind the last pair: equal, and add nothing
    __builtin_memcpy(left, a + most, 4 * (n - most));
    __builtin_memcpy(right, b + most, 4 * (n - most));
    whole(left, right, lanes, into);
}

template <class Word>
std::uint64_t words_of(const std::uint8_t* a, const std::uint8_t* b, std::size_t n) {
    std::uint64_t differing = 0;
    while (n > 0) {
        const std::size_t some = n < 4096 ? n : 4096;  // what a counter of 16 bits holds
        Word count = 0;
        for (std::size_t i = 0; i < some; ++i) {
            Word x, y;
            __builtin_memcpy(&x, a + i * sizeof(Word), sizeof(Word));
            __builtin_memcpy(&y, b + i * sizeof(Word), sizeof(Word));
            count = static_cast<Word>(count + (x != y));
        }
        differing += count;
        a += some * sizeof(Word);
        b += some * sizeof(Word);
        n -= some;
    }
    return differing;
}

std::uint64_t words(const std::uint8_t* a, const std::uint8_t* b, std::size_t n, std::size_t size) {
    return size == 2 ? words_of<std::uint16_t>(a, b, n) : words_of<std::uint32_t>(a, b, n);
}

}  // namespace compare

constexpr CompareKernels kernels{compare::distance, compare::words, fields::formats,
                                 sizeof fields::formats / sizeof fields::formats[0]};

}  // namespace
}  // namespace bitloss
