#pragma once
// Casts between F32, F16 and BF16, and their kernels: one set per instruction set. Definition: src/bitloss/convert/cast.py.
#include <cstddef>
#include <cstdint>

namespace bitloss {

constexpr int float_types = 3;  // F32, F16, BF16

// What a cast does to values; `changed` includes what overflowed or became zero, and leaves out what is not finite.
struct CastCounts {
    std::uint64_t not_finite = 0, changed = 0, overflowed = 0, zeroed = 0;
};

// Casts n values, adds to the counts. Neither side need be aligned; they must not overlap.
using CastKernel = void (*)(const std::uint8_t* from, std::uint8_t* to, std::size_t n, CastCounts& counts);

struct CastKernels {
    CastKernel of[float_types][float_types];  // [from][to]
};

// cast_lanes.hpp compiled for 16, 32 and 64 byte vectors; "wide" is 64 bytes as two vectors of AVX2.
CastKernels casts_portable();
CastKernels casts_avx2();
CastKernels casts_wide();
CastKernels casts_avx512();

}  // namespace bitloss
