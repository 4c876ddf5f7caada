#pragma once
// What an audit counts, and its kernels: one set per instruction set. Definition: src/bitloss/explain/weights.py.
#include <cstddef>
#include <cstdint>

namespace bitloss {

constexpr std::size_t words = 1U << 16;
constexpr int lowest_exponent = -149, exponents = 277;  // floor(log2 |x|) of a float32: -149 .. 127

// What rounding to one type does to finite values.
struct CastTally {
    std::uint64_t changed = 0, overflowed = 0, zeroed = 0;
    float error = 0.0F, relative = 0.0F;  // the largest, overflow left out
};

struct FloatTally {
    std::uint64_t zeros = 0, below = 0, above = 0, nans = 0, positive_infinities = 0, negative_infinities = 0;
    std::int32_t largest = 0, smallest = 0x7f800000;  // bits of magnitudes: finite, finite and not zero
    CastTally f16, bf16;
    std::uint64_t histogram[exponents] = {};
};

// Flags of a block: what some value of it does.
constexpr std::uint8_t f16_changes = 1, f16_overflows = 2, bf16_changes = 4, bf16_overflows = 8, not_finite = 16;

struct AuditKernels {
    // Counts n values; `exact` and `tops` are scratch of 2 x `words` counters each, zero before the first call. Values
    // of pieces that are all exact in BF16 are only counted in `exact`, by their upper half; the others go into
    // `tally`, except for the exponents of normal numbers: those are counted in `tops`, by the upper half.
    void (*tally)(const float* x, std::size_t n, FloatTally& tally, std::uint32_t* exact, std::uint32_t* tops);
    // Flags of blocks [first, end) of `block` values, a multiple of 32.
    void (*mark)(const float* x, std::size_t block, std::uint8_t* marks, std::size_t first, std::size_t end);
};

// audit_lanes.hpp compiled for 16, 32 and 64 byte vectors; "wide" is 64 bytes as two vectors of AVX2.
AuditKernels audit_portable();
AuditKernels audit_avx2();
AuditKernels audit_wide();
AuditKernels audit_avx512();

}  // namespace bitloss
