// The casts for any machine with vectors of 16 bytes (or what the compiler makes of them).
#define BITLOSS_VECTOR_BYTES 16
#define BITLOSS_LANES 4
#include "cast_lanes.hpp"

namespace bitloss {

CastKernels casts_portable() { return casts::table(); }

}  // namespace bitloss
