// The audit for AVX2; flags in CMakeLists.txt.
#define BITLOSS_VECTOR_BYTES 32
#define BITLOSS_LANES 8
#include "audit_lanes.hpp"

namespace bitloss {

AuditKernels audit_avx2() { return kernels; }

}  // namespace bitloss
