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
    interleave_rows<Floats16>(x, static_cast<float*>(to), rows, width);
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

}  // namespace bitloss
