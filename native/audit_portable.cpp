// The audit for any machine with vectors of 16 bytes (or what the compiler makes of them).
#define BITLOSS_VECTOR_BYTES 16
#define BITLOSS_LANES 4
#include "audit_lanes.hpp"

namespace bitloss {

AuditKernels audit_portable() { return kernels; }

}  // namespace bitloss
