#pragma once
// What two versions of a tensor have in common: kernels of `bitloss diff`. Definitions: src/bitloss/explain/blocks.py
// (bytes), fields.py (quants and scales), distance.py (values).
#include <cstddef>
#include <cstdint>

namespace bitloss {

// NaN, +infinity, -infinity.
struct Odd {
    std::uint64_t nan = 0, up = 0, down = 0;
};

// Values a and b, pair by pair.
struct Distance {
    std::uint64_t differing = 0;  // not equal as numbers, and not both NaN
    std::uint64_t left_out = 0;   // pairs in which one is not finite
    double squares = 0.0, largest = 0.0;  // Σ (a - b)² and max |a - b| over the other pairs
    Odd a, b;
};

struct CompareKernels {
    // Adds what n pairs tell.
    void (*distance)(const float* a, const float* b, std::size_t n, Distance& into);
};

CompareKernels compare_portable();
CompareKernels compare_avx2();
CompareKernels compare_avx512();

// Blocks of a type, whose quants and scales (minima among them) are told apart.
struct FieldFormat {
    int kind;  // enum ggml_type
    std::size_t bytes, quants, scales;
    // Writes each quant's and each scale's bits, or of scales of two bytes those of both ORed together. Bits only move,
    // so what comes out of a ^ b is zero where the two are equal.
    void (*codes)(const std::uint8_t* block, std::uint8_t* quants, std::uint8_t* scales);
};

struct FieldFormats {
    const FieldFormat* formats;
    std::size_t size;
};

FieldFormats field_formats();

}  // namespace bitloss
