// The audit for AVX-512; flags in CMakeLists.txt.
#define BITLOSS_VECTOR_BYTES 64
#define BITLOSS_LANES 16
#include "audit_lanes.hpp"

namespace bitloss {

AuditKernels audit_avx512() { return kernels; }

}  // namespace bitloss
