// The product of pairs of bfloat16, by the processor's own instruction; flags in CMakeLists.txt.
//
// A pair is handled as a float: what is loaded, interleaved and stored never looks inside.
#include "product_lanes16.hpp"

namespace bitloss {
namespace {

struct Pairs16 : Lanes16 {
    static V fma(V a, V b, V c) {
        return _mm512_dpbf16_ps(c, (__m512bh)_mm512_castps_si512(a), (__m512bh)_mm512_castps_si512(b));
    }
};

}  // namespace

void pack_pairs(const float* x, void* to, std::size_t rows, std::size_t width) {
    interleave_rows<Pairs16>(static_cast<float*>(to), rows, width / 2, [&](std::size_t pair) {
        std::uint32_t both[32], pairs[16];
        __builtin_memcpy(both, x + 2 * pair, sizeof both);
        for (std::size_t i = 0; i < 16; ++i) pairs[i] = both[2 * i] >> 16 | (both[2 * i + 1] & 0xFFFF0000U);
        return _mm512_castsi512_ps(_mm512_loadu_si512(pairs));
    });
}

void product_pairs(const ProductJob& job) {
    ProductJob halved = job;
    halved.width /= 2;
    product_stretch<Pairs16, float>(halved, [](const float* p) { return _mm512_loadu_ps(p); });
}

}  // namespace bitloss
