#pragma once
// One scored position: what divergence/metrics.py defines, for one row of logits.
#include <cstddef>
#include <cstdint>

namespace bitloss {

struct RowMetrics {
    double nll_base, nll, kld, kld_reverse, js, p_base, p, entropy_base, entropy;
    float top5_overlap, top10_overlap;
    bool same_top;
    std::uint8_t nonfinite;
};

enum : std::uint8_t { nonfinite_base = 1, nonfinite_candidate = 2 };

// `scratch` has room for scratch_floats(n_vocab), and holds nothing between calls.
using RowKernel = RowMetrics (*)(const float* base, const float* cand, std::size_t n_vocab, std::size_t target,
                                 float* scratch);
constexpr std::size_t scratch_floats(std::size_t n_vocab) { return 6 * (n_vocab + 32); }

// Any logits, one entry at a time; the vector kernels below hand it the rows they cannot take.
RowMetrics row_scalar(const float* base, const float* cand, std::size_t n_vocab, std::size_t target);

// divergence_vector.hpp compiled for 16, 32 and 64 byte vectors.
RowMetrics row_portable(const float* base, const float* cand, std::size_t n_vocab, std::size_t target, float* scratch);
RowMetrics row_avx2(const float* base, const float* cand, std::size_t n_vocab, std::size_t target, float* scratch);
RowMetrics row_avx512(const float* base, const float* cand, std::size_t n_vocab, std::size_t target, float* scratch);

}  // namespace bitloss
