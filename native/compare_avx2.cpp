// Distances for AVX2; flags in CMakeLists.txt.
#define BITLOSS_VECTOR_BYTES 32
#define BITLOSS_LANES 8
#include "compare_lanes.hpp"

namespace bitloss {

CompareKernels compare_avx2() { return kernels; }

}  // namespace bitloss
