// Distances for any machine with vectors of 16 bytes (or what the compiler makes of them).
#define BITLOSS_VECTOR_BYTES 16
#define BITLOSS_LANES 4
#include "compare_lanes.hpp"

namespace bitloss {

CompareKernels compare_portable() { return kernels; }

}  // namespace bitloss
