#pragma once
// What a format's kernels look like to the binding, and the tables of them: one per instruction set.
#include <cstddef>
#include <cstdint>

namespace bitloss {

// Rows of floats laid end to end, seen as blocks of the format.
struct EncodeJob {
    const float* x;        // [n_rows * blocks_per_row * block]
    const float* weights;  // [blocks_per_row * block], the same for every row, or null
    std::size_t blocks_per_row;
    std::uint8_t* out;     // [n_rows * blocks_per_row * bytes]
};

struct DecodeJob {
    const std::uint8_t* data;
    float* out;
};

struct Codec {
    int kind;           // enum ggml_type
    std::size_t block;  // weights
    std::size_t bytes;  // of a block
    // Both take the blocks [first, end), counted through all rows; null where there is no kernel.
    void (*encode)(const EncodeJob& job, std::size_t first, std::size_t end);
    void (*decode)(const DecodeJob& job, std::size_t first, std::size_t end);
};

struct CodecTable {
    const Codec* codecs;
    std::size_t size;
    std::size_t lanes;  // blocks in multiples of this keep every lane busy
};

// codec_table.hpp compiled for 16, 32 and 64 byte vectors; "wide" is 64 bytes as two vectors of AVX2.
CodecTable codecs_portable();
CodecTable codecs_avx2();
CodecTable codecs_wide();
CodecTable codecs_avx512();

}  // namespace bitloss
