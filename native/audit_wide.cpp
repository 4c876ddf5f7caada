// The audit for 16 lanes on AVX2, so that what AVX-512 computes can be tested without it.
#define BITLOSS_VECTOR_BYTES 32
#define BITLOSS_LANES 16
#include "audit_lanes.hpp"

namespace bitloss {

AuditKernels audit_wide() { return kernels; }

}  // namespace bitloss
