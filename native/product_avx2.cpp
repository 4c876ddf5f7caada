// The product with 8 lanes; flags in CMakeLists.txt.
#include <immintrin.h>

#include "product_lanes.hpp"

namespace bitloss {
namespace {

struct Lanes8 {
    using V = __m256;
    static constexpr std::size_t lanes = 8, rows = 2;  // 8 sums, 4 weights and a value in 16 registers

    static V zero() { return _mm256_setzero_ps(); }
    static V load(const float* p) { return _mm256_loadu_ps(p); }
    static void store(float* p, V v) { _mm256_storeu_ps(p, v); }
    static V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }

    // Lane l and l + 4, then l + 2, l + 1, of four vectors at once.
    static void fold(V a, V b, V c, V d, float* out) {
        const V ab = _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20),
                                   _mm256_permute2f128_ps(a, b, 0x31));
        const V cd = _mm256_add_ps(_mm256_permute2f128_ps(c, d, 0x20),
                                   _mm256_permute2f128_ps(c, d, 0x31));
        // a0 a1 c0 c1 | b0 b1 d0 d1, and what lies two lanes on
        V all = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xEE));
        all = _mm256_add_ps(all, _mm256_movehdup_ps(all));
        const __m128 ac = _mm256_castps256_ps128(all), bd = _mm256_extractf128_ps(all, 1);
        // a . c . and b . d .
        _mm_storeu_ps(out, _mm_unpacklo_ps(_mm_shuffle_ps(ac, ac, 0x08), _mm_shuffle_ps(bd, bd, 0x08)));
    }
};

__m128i halves(const std::uint16_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }

}  // namespace

void pack_avx2(const float* x, void* to, std::size_t rows, std::size_t width) {
    interleave_rows<Lanes8>(static_cast<float*>(to), rows, width, [&](std::size_t i) { return Lanes8::load(x + i); });
}

void product_avx2(const ProductJob& job) {
    if (job.type == WeightType::f32)
        product_stretch<Lanes8, float>(job, [](const float* p) { return _mm256_loadu_ps(p); });
    else if (job.type == WeightType::f16)
        product_stretch<Lanes8, std::uint16_t>(job, [](const std::uint16_t* p) { return _mm256_cvtph_ps(halves(p)); });
    else
        product_stretch<Lanes8, std::uint16_t>(job, [](const std::uint16_t* p) {
            return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves(p)), 16));
        });
}

}  // namespace bitloss
