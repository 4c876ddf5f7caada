// Logits from hidden states: the product with a model's output weight, every sum in the order libggml-cpu takes.
//
// libggml's matrix product (ggml/src/ggml-cpu/llamafile/sgemm.cpp, class tinyBLAS) keeps one vector of partial sums for
// each result: lane l adds, fused, the products of entries l, l + lanes, l + 2 lanes, ... in turn; at the end halves are
// added to halves until one number is left. Floating point sums depend on nothing but that order, so a kernel that
// keeps it gives the same bits, whatever else it does: here the weights are widened to float once for all rows of a
// slice, and sixteen results are folded together.
#pragma once
#include <cstddef>
#include <cstdint>

namespace bitloss {

enum class WeightType : int { f32 = 0, f16 = 1 };

// A stretch of the product: weight rows first .. last-1 (both multiples of 4) with all of x.
struct ProductJob {
    const std::uint8_t* weights;  // [n_out, width] of `type`
    WeightType type;
    const float* x;  // [rows, width], packed
    float* out;      // [rows, n_out]
    std::size_t n_out, width, rows;
    std::size_t first, last;
    float* room;  // [16, width], for weights
};

using ProductKernel = void (*)(const ProductJob&);
// Puts rows of x into the order in which the kernel reads them.
using PackKernel = void (*)(const float* x, float* to, std::size_t rows, std::size_t width);

void product_avx512(const ProductJob& job);  // 16 lanes; width a multiple of 16
void product_avx2(const ProductJob& job);    // 8 lanes; width a multiple of 8
void pack_avx512(const float* x, float* to, std::size_t rows, std::size_t width);
void pack_avx2(const float* x, float* to, std::size_t rows, std::size_t width);

}  // namespace bitloss
