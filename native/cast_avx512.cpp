// The casts for AVX-512; flags in CMakeLists.txt.
#define BITLOSS_VECTOR_BYTES 64
#define BITLOSS_LANES 16
#include "cast_lanes.hpp"

namespace bitloss {

CastKernels casts_avx512() { return casts::table(); }

}  // namespace bitloss
