// Vectors of 16 sums; what is added to them, and how, is said where they are used.
#pragma once
#include <immintrin.h>

#include "product_lanes.hpp"

namespace bitloss {
namespace {

struct Lanes16 {
    using V = __m512;
    static constexpr std::size_t lanes = 16, rows = 6;  // 24 sums, 4 weights and a value in 32 registers

    static V zero() { return _mm512_setzero_ps(); }
    static V load(const float* p) { return _mm512_loadu_ps(p); }
    static void store(float* p, V v) { _mm512_storeu_ps(p, v); }

    // Lane l and l + 8, then l + 4, l + 2, l + 1, of four vectors at once.
    static void fold(V a, V b, V c, V d, float* out) {
        const V ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44),
                                   _mm512_shuffle_f32x4(a, b, 0xEE));
        const V cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44),
                                   _mm512_shuffle_f32x4(c, d, 0xEE));
        V all = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xDD));
        all = _mm512_add_ps(all, _mm512_permute_ps(all, 0x4E));
        all = _mm512_add_ps(all, _mm512_permute_ps(all, 0xB1));
        const __m512i firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
        _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, all)));
    }
};

}  // namespace
}  // namespace bitloss
