// The casts for AVX2; flags in CMakeLists.txt.
#define BITLOSS_VECTOR_BYTES 32
#define BITLOSS_LANES 8
#include "cast_lanes.hpp"

namespace bitloss {

CastKernels casts_avx2() { return casts::table(); }

}  // namespace bitloss
