// The casts for 16 lanes on AVX2, so that what AVX-512 computes can be tested without it.
#define BITLOSS_VECTOR_BYTES 32
#define BITLOSS_LANES 16
#include "cast_lanes.hpp"

namespace bitloss {

CastKernels casts_wide() { return casts::table(); }

}  // namespace bitloss
