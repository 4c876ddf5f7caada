#pragma once
// What two versions of a tensor have in common: kernels of `bitloss diff`, one set per instruction set. Definitions:
// src/bitloss/explain/blocks.py (bytes), fields.py (quants and scales), distance.py (values).
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

// Blocks of a type, whose quants and scales (minima among them) are told apart.
struct FieldFormat {
    int kind;  // enum ggml_type
    std::size_t bytes;
    // Adds how many quants and scales of n blocks differ; returns how many blocks do.
    std::uint64_t (*count)(const std::uint8_t* a, const std::uint8_t* b, std::size_t n, std::uint64_t& quants,
                           std::uint64_t& scales);
};

struct CompareKernels {
    // Adds what n pairs tell; aligned as floats are.
    void (*distance)(const float* a, const float* b, std::size_t n, Distance& into);
    // How many of n words of `size` bytes (2 or 4) differ.
    std::uint64_t (*words)(const std::uint8_t* a, const std::uint8_t* b, std::size_t n, std::size_t size);
    const FieldFormat* formats;
    std::size_t n_formats;
};

CompareKernels compare_portable();
CompareKernels compare_avx2();
CompareKernels compare_avx512();

}  // namespace bitloss
