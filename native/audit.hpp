#pragma once
// What an audit counts, and its kernels: one set per instruction set. Definition: src/bitloss/explain/weights.py.
#include <cstddef>
#include <cstdint>

namespace bitloss {

constexpr std::size_t words = 1U << 16;
constexpr int lowest_exponent = -149, exponents = 277;  // floor(log2 |x|) of a float32: -149 .. 127

// Words of 16 bits. Most are *plain*: what they add is known without looking at each (see audit_words.hpp). The others
// are counted one by one in a table of `words` counters, from which everything else follows.
struct WordTally {
    std::uint64_t plain = 0;           // how many are
    std::uint64_t below = 0;           // plain ones below the rule's interval and not zero
    std::uint64_t changed = 0;         // plain ones of F16 that change in BF16
    std::uint64_t fields[256] = {};    // of plain ones, by exponent field; 0: zeros
    // Magnitudes seen, between which a word is plain, and for F16 what has been seen of the errors in BF16.
    std::int16_t smallest = 0x7fff, largest = -1, top_of_error = -1, mantissa_of_share = 0x0400;
};

// What rounding to one type does to finite values.
struct CastTally {
    std::uint64_t changed = 0, overflowed = 0, zeroed = 0;
    float error = 0.0F, relative = 0.0F;  // the largest, overflow left out
};

struct FloatTally {
    std::uint64_t values = 0, below = 0, above = 0, nans = 0, positive_infinities = 0, negative_infinities = 0;
    std::int32_t largest = 0, smallest = 0x7f800000;  // bits of magnitudes: finite, finite and not zero
    CastTally f16, bf16;
    std::uint64_t subnormals[23] = {};  // by the place of the first bit
    std::uint64_t fields[256] = {};     // all values by exponent field
};

// Blocks of Q8_0 that get other bytes by way of a type, and those of which a value overflows (counted in both).
struct ThroughTally {
    std::uint64_t changed = 0, overflowed = 0;
};

struct BlockTally {
    std::uint64_t blocks = 0, not_finite = 0;  // all, and those with a value that is not: they are in no other count
    ThroughTally f16, bf16;
};

constexpr std::size_t most_at_once = 1U << 16;  // values: at most 256 kB, which stay in the second-level cache

// Flags of a block: what some value of it does.
constexpr std::uint8_t f16_changes = 1, f16_overflows = 2, bf16_changes = 4, bf16_overflows = 8, not_finite = 16;

struct AuditKernels {
    // Count n words, at most `most_at_once`; odd ones in `table`. Where `blocks` is not null, n is a multiple of 32 and
    // blocks of 32 are compared too.
    void (*words_of_f16)(const std::uint16_t* x, std::size_t n, WordTally& tally, std::uint32_t* table,
                         BlockTally* blocks);
    void (*words_of_bf16)(const std::uint16_t* x, std::size_t n, WordTally& tally, std::uint32_t* table,
                          BlockTally* blocks);
    // Counts n values, likewise. Pieces of values that are all exact in BF16 or F16 are counted as such words; the
    // others go into `tally`.
    void (*floats)(const float* x, std::size_t n, FloatTally& tally, WordTally& bf16, std::uint32_t* bf16_table,
                   WordTally& f16, std::uint32_t* f16_table, BlockTally* blocks);
    // Flags of blocks [first, end) of `block` values, a multiple of 32.
    void (*mark)(const float* x, std::size_t block, std::uint8_t* marks, std::size_t first, std::size_t end);
};

// audit_lanes.hpp compiled for 16, 32 and 64 byte vectors; "wide" is 64 bytes as two vectors of AVX2.
AuditKernels audit_portable();
AuditKernels audit_avx2();
AuditKernels audit_wide();
AuditKernels audit_avx512();

}  // namespace bitloss
