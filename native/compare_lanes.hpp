#pragma once
// Distances for one instruction set. See lanes.hpp for how it is compiled.
#include "compare.hpp"
#include "lanes.hpp"

namespace bitloss {
namespace {
namespace compare {

constexpr std::int32_t infinity = 0x7f800000;

typedef double Doubles __attribute__((vector_size(BITLOSS_VECTOR_BYTES)));
typedef float Halves __attribute__((vector_size(BITLOSS_VECTOR_BYTES / 2)));
constexpr int pieces = 2 * parts, width = lanes / pieces;

BITLOSS_INLINE Doubles widen(const float* from) {
    Halves few;
    __builtin_memcpy(&few, from, sizeof few);
    return __builtin_convertvector(few, Doubles);
}

void count_odd(float x, Odd& odd) {
    std::uint32_t raw;
    __builtin_memcpy(&raw, &x, 4);
    const std::uint32_t size = raw & 0x7fffffffU;
    if (size > static_cast<std::uint32_t>(infinity)) ++odd.nan;
    if (size == static_cast<std::uint32_t>(infinity)) ++(raw >> 31 ? odd.down : odd.up);
}

// n pairs, a multiple of the lanes.
void whole(const float* a, const float* b, std::size_t n, Distance& into) {
    Ints differing = all(0);
    Doubles squares[pieces] = {}, largest[pieces] = {};
    for (std::size_t at = 0; at < n; at += lanes) {
        Floats x = load<Floats>(a + at), y = load<Floats>(b + at);
        differing = differing - as_ints((x != y) & !((x != x) & (y != y)));
        const Mask odd = (all(infinity - 1) < (bits(x) & all(0x7fffffff))) |
                         (all(infinity - 1) < (bits(y) & all(0x7fffffff)));
        float left[lanes], right[lanes];
        const float *l = a + at, *r = b + at;
        if (any(odd)) {
            for (int i = 0; i < lanes; ++i) {
                count_odd(l[i], into.a);
                count_odd(r[i], into.b);
            }
            std::int32_t each[lanes];
            store(each, as_ints(odd));
            for (int i = 0; i < lanes; ++i) into.left_out += each[i] != 0;
            store(left, select(odd, all(0.0F), x));
            store(right, select(odd, all(0.0F), y));
            l = left;
            r = right;
        }
        for (int p = 0; p < pieces; ++p) {
            const Doubles by = widen(l + p * width) - widen(r + p * width);
            squares[p] += by * by;
            const Doubles size = by < 0.0 ? -by : by;
            largest[p] = size > largest[p] ? size : largest[p];
        }
    }
    std::int32_t each[lanes];
    store(each, differing);
    for (int i = 0; i < lanes; ++i) into.differing += static_cast<std::uint32_t>(each[i]);
    for (int p = 0; p < pieces; ++p)
        for (int i = 0; i < width; ++i) {
            into.squares += squares[p][i];
            into.largest = into.largest > largest[p][i] ? into.largest : largest[p][i];
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

}  // namespace compare

constexpr CompareKernels kernels{compare::distance};

}  // namespace
}  // namespace bitloss
