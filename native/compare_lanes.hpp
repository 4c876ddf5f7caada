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
constexpr int pieces = 2 * parts, width = lanes / pieces;

// By intrinsics: __builtin_convertvector takes them apart one by one (GCC 12).
BITLOSS_INLINE Doubles widen(const float* from) {
#if BITLOSS_VECTOR_BYTES == 64
    return (Doubles)_mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(from));
#elif BITLOSS_VECTOR_BYTES == 32
    return (Doubles)_mm256_cvtps_pd(_mm_loadu_ps(from));
#elif defined(__SSE2__)
    return (Doubles)_mm_cvtps_pd(_mm_castpd_ps(_mm_load_sd(reinterpret_cast<const double*>(from))));
#else
    return Doubles{from[0], from[1]};
#endif
}

void count_odd(float x, Odd& odd) {
    std::uint32_t raw;
    __builtin_memcpy(&raw, &x, 4);
    const std::uint32_t size = raw & 0x7fffffffU;
    if (size > static_cast<std::uint32_t>(infinity)) ++odd.nan;
    if (size == static_cast<std::uint32_t>(infinity)) ++(raw >> 31 ? odd.down : odd.up);
}

BITLOSS_INLINE float largest_of(const Floats& x) { return largest(x); }

// Pairs of which one is not finite, or whose difference a float32 cannot hold: one by one, they are few.
[[gnu::noinline]] void few(const float* a, const float* b, Distance& into) {
    for (int i = 0; i < lanes; ++i) {
        const double by = static_cast<double>(a[i]) - static_cast<double>(b[i]);
        if (by - by != 0.0) {
            count_odd(a[i], into.a);
            count_odd(b[i], into.b);
            ++into.left_out;
        } else {
            into.squares += by * by;
            const double size = __builtin_fabs(by);
            into.largest = into.largest > size ? into.largest : size;
        }
    }
}

// n pairs, a multiple of the lanes.
void whole(const float* a, const float* b, std::size_t n, Distance& into) {
    Ints differing = all(0);
    Floats largest = all(0.0F);
    Doubles squares[pieces] = {};
    for (std::size_t at = 0; at < n; at += lanes) {
        const Floats x = load<Floats>(a + at), y = load<Floats>(b + at);
        differing = differing - as_ints((x != y) & !((x != x) & (y != y)));
        Floats by = x - y;
        if (any(all(infinity - 1) < bits(absolute(by)))) {
            few(a + at, b + at, into);
            by = all(0.0F);
        }
        largest = larger(largest, absolute(by));
        float each[lanes];
        store(each, by);
        for (int p = 0; p < pieces; ++p) {
            const Doubles wide = widen(each + p * width);
            squares[p] += wide * wide;
        }
    }
    std::int32_t each[lanes];
    store(each, differing);
    for (int i = 0; i < lanes; ++i) into.differing += static_cast<std::uint32_t>(each[i]);
    for (int p = 0; p < pieces; ++p)
        for (int i = 0; i < width; ++i) into.squares += squares[p][i];
    const double top = static_cast<double>(largest_of(largest));
    into.largest = into.largest > top ? into.largest : top;
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
