// The product of pairs of bfloat16, by the processor's own instruction; flags in CMakeLists.txt.
//
// A pair is handled as a float: what is loaded, interleaved and stored never looks inside.
#include <cstring>
#include <vector>

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
    std::vector<std::uint32_t> pairs(rows * width / 2);
    for (std::size_t i = 0; i < pairs.size(); ++i) {
        std::uint32_t both[2];
        std::memcpy(both, x + 2 * i, sizeof both);
        pairs[i] = both[0] >> 16 | (both[1] & 0xFFFF0000U);
    }
    interleave_rows<Pairs16>(reinterpret_cast<const float*>(pairs.data()), static_cast<float*>(to), rows, width / 2);
}

void product_pairs(const ProductJob& job) {
    ProductJob halved = job;
    halved.width /= 2;
    product_stretch<Pairs16, float>(halved, [](const float* p) { return _mm512_loadu_ps(p); });
}

}  // namespace bitloss
