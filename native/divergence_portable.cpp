// The vector kernel for any machine; flags in CMakeLists.txt.
#define BITLOSS_VECTOR_BYTES 16
#include "divergence_vector.hpp"

namespace bitloss {

RowMetrics row_portable(const float* base, const float* cand, std::size_t n_vocab, std::size_t target, float* scratch) {
    return row_vector(base, cand, n_vocab, target, scratch);
}

}  // namespace bitloss
