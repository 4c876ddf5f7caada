// Distances for AVX-512; flags in CMakeLists.txt.
#define BITLOSS_VECTOR_BYTES 64
#define BITLOSS_LANES 16
#include "compare_lanes.hpp"

namespace bitloss {

CompareKernels compare_avx512() { return kernels; }

}  // namespace bitloss
