// Logits from hidden states: the product with a model's output weight, every sum in the order libggml-cpu takes.
//
// libggml's matrix product (ggml/src/ggml-cpu/llamafile/sgemm.cpp) keeps one vector of partial sums for each result.
// Floats (class tinyBLAS): lane l adds, fused, the products of entries l, l + lanes, l + 2 lanes, ... in turn. Where the
// processor has products of pairs of bfloat16, lane l adds those of entries 2 l + 1 and 2 l of 32, then of the next 32.
// Blocks of Q8_0 (class tinyBLAS_Q0_AVX): rows are made Q8_0 too; of every block lane l of 8 adds, fused, the product of
// both scales with the whole number that entries 4 l .. 4 l + 3 give. At the end halves are added to halves until one
// number is left. Blocks of Q6_K (ggml/src/ggml-cpu/tiled): rows are made Q8_K; a block gives one whole number, its
// product with the weight's scale is rounded, and multiplied by the row's it is added, fused, block after block. Floating point sums depend on nothing but that order, so a kernel that keeps it gives the same bits,
// whatever else it does: here the weights are brought into shape once for all rows of a slice.
#pragma once
#include <cstddef>
#include <cstdint>

namespace bitloss {

// As libggml numbers them.
enum class WeightType : int { f32 = 0, f16 = 1, q8_0 = 8, q6_k = 14, bf16 = 30 };

// A stretch of the product: weight rows first .. last-1 with all of x.
struct ProductJob {
    const std::uint8_t* weights;  // [n_out, width] of `type`
    WeightType type;
    const void* x;  // [rows, width], packed
    float* out;     // [rows, n_out]
    std::size_t n_out, width, rows;
    std::size_t first, last;  // first is a multiple of 16
    void* room;               // product_room bytes, on a line of the cache
};

using ProductKernel = void (*)(const ProductJob&);
// Brings rows of x into the form in which the kernel reads them; `to` has room for rows * product_packed bytes.
using PackKernel = void (*)(const float* x, void* to, std::size_t rows, std::size_t width);

constexpr std::size_t product_panel = 16;  // weight rows that are brought into shape together
constexpr std::size_t product_room(std::size_t width) { return product_panel * width * sizeof(float); }
constexpr std::size_t product_packed(std::size_t width) { return width * sizeof(float); }

// 16 lanes, of floats, float16 and bfloat16; width a multiple of 16, n_out of 4
void product_avx512(const ProductJob& job);
void pack_avx512(const float* x, void* to, std::size_t rows, std::size_t width);
// 8 lanes, likewise; width a multiple of 8
void product_avx2(const ProductJob& job);
void pack_avx2(const float* x, void* to, std::size_t rows, std::size_t width);
// Pairs of bfloat16; width a multiple of 32, n_out of 4; of x the upper 16 bits are taken.
void product_pairs(const ProductJob& job);
void pack_pairs(const float* x, void* to, std::size_t rows, std::size_t width);
// The same by other means, but for results below 2^-126, which become zero.
void product_fused_pairs(const ProductJob& job);
void pack_fused_pairs(const float* x, void* to, std::size_t rows, std::size_t width);
// Blocks of Q8_0 and of Q6_K; width a multiple of 32 and of 256. Rows must be finite: what a NaN becomes is libggml's.
void product_q8_0(const ProductJob& job);
void pack_q8_0(const float* x, void* to, std::size_t rows, std::size_t width);
void product_q6_k(const ProductJob& job);
void pack_q6_k(const float* x, void* to, std::size_t rows, std::size_t width);

}  // namespace bitloss
