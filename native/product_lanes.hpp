// The product, for the lanes `L` of one instruction set; see product.hpp for the order of its sums.
//
// L gives: V (a vector of sums), lanes, rows (of x in a tile), zero, load, store, fma, fold (four vectors to their four
// sums).
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "product.hpp"
#include "product_ahead.hpp"

namespace bitloss {
namespace {

// Vectors lie as they are read: for each step of `lanes` entries those of all rows of a group, one after the other.
// Rows as they come are multiples of 4096 bytes apart in many models, and would push each other out of the cache.
template <class L, class Load>
void interleave(float* to, std::size_t rows, std::size_t width, const Load& load) {
    for (std::size_t at = 0; at < width; at += L::lanes)
        for (std::size_t r = 0; r < rows; ++r, to += L::lanes) L::store(to, load(r * width + at));
}

// Four weight rows times `Rows` rows of x, both interleaved. All sums live in registers: every loop over them is
// unrolled, or the compiler would keep the array in memory.
template <class L, std::size_t Rows>
[[gnu::always_inline]] inline void product_tile(const float* w, const float* x, float* out, std::size_t width,
                                                std::size_t n_out) {
    typename L::V sums[Rows][4];
#pragma GCC unroll 8
    for (std::size_t r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (std::size_t i = 0; i < 4; ++i) sums[r][i] = L::zero();
    for (std::size_t at = 0; at < width; at += L::lanes, w += 4 * L::lanes, x += Rows * L::lanes) {
        typename L::V weight[4];
#pragma GCC unroll 4
        for (std::size_t i = 0; i < 4; ++i) weight[i] = L::load(w + i * L::lanes);
#pragma GCC unroll 8
        for (std::size_t r = 0; r < Rows; ++r) {
            const typename L::V value = L::load(x + r * L::lanes);
#pragma GCC unroll 4
            for (std::size_t i = 0; i < 4; ++i) sums[r][i] = L::fma(weight[i], value, sums[r][i]);
        }
    }
#pragma GCC unroll 8
    for (std::size_t r = 0; r < Rows; ++r) L::fold(sums[r][0], sums[r][1], sums[r][2], sums[r][3], out + r * n_out);
}

template <class L, std::size_t... Rows>
void product_remainder(std::size_t left, const float* w, const float* x, float* out, std::size_t width,
                       std::size_t n_out, std::index_sequence<Rows...>) {
    ((left == Rows + 1 ? product_tile<L, Rows + 1>(w, x, out, width, n_out) : void()), ...);
}

// Rows of x in groups of a tile; `load` makes the vector that begins with an entry.
template <class L, class Load>
void interleave_rows(float* to, std::size_t rows, std::size_t width, const Load& load) {
    for (std::size_t row = 0; row < rows; row += L::rows) {
        const std::size_t from = row * width;
        interleave<L>(to + from, rows - row < L::rows ? rows - row : L::rows, width,
                      [&](std::size_t i) { return load(from + i); });
    }
}

// `load` makes a vector of `L::lanes` weights.
template <class L, class Weight, class Load>
void product_stretch(const ProductJob& job, const Load& load) {
    const std::size_t width = job.width, n_out = job.n_out;
    const auto* weights = reinterpret_cast<const Weight*>(job.weights);
    const auto* packed = static_cast<const float*>(job.x);
    auto* room = static_cast<float*>(job.room);
    for (std::size_t first = job.first; first < job.last; first += product_panel) {
        const std::size_t many = job.last - first < product_panel ? job.last - first : product_panel;
        for (std::size_t i = 0; i < many; i += 4) {
            const Weight* w = weights + (first + i) * width;
            interleave<L>(room + i * width, 4, width, [&](std::size_t k) { return load(w + k); });
        }
        const std::size_t next = first + many, following = std::min(product_panel, n_out - next);
        Ahead ahead(reinterpret_cast<const std::uint8_t*>(weights + next * width), following * width * sizeof(Weight),
                    (job.rows + L::rows - 1) / L::rows);
        for (std::size_t row = 0; row < job.rows; row += L::rows) {
            ahead.step();
            const std::size_t left = job.rows - row;
            const float* x = packed + row * width;
            float* out = job.out + row * n_out + first;
            // lines of results of the next rows: far apart, and no prefetcher foresees them
            for (std::size_t r = L::rows; r < 2 * L::rows && r < left; ++r) __builtin_prefetch(out + r * n_out, 1);
            for (std::size_t i = 0; i < many; i += 4) {
                if (left >= L::rows)
                    product_tile<L, L::rows>(room + i * width, x, out + i, width, n_out);
                else
                    product_remainder<L>(left, room + i * width, x, out + i, width, n_out,
                                         std::make_index_sequence<L::rows - 1>());
            }
        }
    }
}

}  // namespace
}  // namespace bitloss
