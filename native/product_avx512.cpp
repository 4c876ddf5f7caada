// The product with 16 lanes; flags in CMakeLists.txt.
#include "product_lanes16.hpp"

namespace bitloss {
namespace {

struct Floats16 : Lanes16 {
    static V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
};

__m256i halves(const std::uint16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

}  // namespace

void pack_avx512(const float* x, void* to, std::size_t rows, std::size_t width) {
    interleave_rows<Floats16>(static_cast<float*>(to), rows, width, [&](std::size_t i) { return Floats16::load(x + i); });
}

void product_avx512(const ProductJob& job) {
    if (job.type == WeightType::f32)
        product_stretch<Floats16, float>(job, [](const float* p) { return _mm512_loadu_ps(p); });
    else if (job.type == WeightType::f16)
        product_stretch<Floats16, std::uint16_t>(job, [](const std::uint16_t* p) { return _mm512_cvtph_ps(halves(p)); });
    else
        product_stretch<Floats16, std::uint16_t>(job, [](const std::uint16_t* p) {
            return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves(p)), 16));
        });
}

// What the instruction for pairs of bfloat16 does, with fused multiply-adds: products of two of them are exact, so each
// is added in a rounding of its own, the second of a pair first, and subnormal numbers count as zero on both sides. On
// processors of Intel that have the instruction this is faster. (Halves are added to halves in the same mode, so a result
// below 2^-126 becomes zero, which the instruction does not make of it.)
void pack_fused_pairs(const float* x, void* to, std::size_t rows, std::size_t width) {
    // of 32 entries the second of every pair, then the first
    interleave_rows<Floats16>(static_cast<float*>(to), rows, width, [&](std::size_t i) {
        const float* pairs = x + (i & ~std::size_t{31}) + ((i & 16) ? 0 : 1);
        float some[16];
        for (std::size_t k = 0; k < 16; ++k) some[k] = pairs[2 * k];
        return Floats16::load(some);
    });
}

void product_fused_pairs(const ProductJob& job) {
    const auto* weights = reinterpret_cast<const std::uint16_t*>(job.weights);
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040);  // subnormal numbers are zero, coming in and going out
    product_stretch<Floats16, std::uint16_t>(job, [&](const std::uint16_t* p) {
        const auto at = static_cast<std::size_t>(p - weights);
        const __m512i pairs = _mm512_loadu_si512(weights + (at & ~std::size_t{31}));
        const bool first = at & 16;
        return _mm512_castsi512_ps(first ? _mm512_slli_epi32(pairs, 16)
                                         : _mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xFFFF0000U))));
    });
    _mm_setcsr(before);
}

}  // namespace bitloss
