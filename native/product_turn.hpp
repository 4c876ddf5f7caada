// What products with blocks share: sixteen rows of a weight are turned, so that a vector holds four entries of each.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "product.hpp"
#include "product_ahead.hpp"

namespace bitloss {
namespace {

// 32 bytes of rows r and r + 4 side by side: v[j] is to hold those of first_row(j).
inline std::size_t first_row(std::size_t j) { return j < 4 ? j : j + 4; }

inline __m512i side_by_side(const std::uint8_t* low, const std::uint8_t* high) {
    const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(low));
    const __m256i second = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(high));
    return _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
}

// v: 32 bytes of sixteen rows, as `first_row` says; to[k]: bytes 4 k .. 4 k + 3 of row 0, of row 1, ...
inline void turn(const __m512i (&v)[8], std::uint8_t (*to)[64]) {
    __m512i quarters[2][4];  // four bytes k of rows 0-3 | k + 4 of rows 0-3 | k of rows 4-7 | k + 4 of rows 4-7
    for (std::size_t half = 0; half < 2; ++half) {
        const __m512i* w = v + 4 * half;
        const __m512i low01 = _mm512_unpacklo_epi32(w[0], w[1]), low23 = _mm512_unpacklo_epi32(w[2], w[3]);
        const __m512i high01 = _mm512_unpackhi_epi32(w[0], w[1]), high23 = _mm512_unpackhi_epi32(w[2], w[3]);
        quarters[half][0] = _mm512_unpacklo_epi64(low01, low23);
        quarters[half][1] = _mm512_unpackhi_epi64(low01, low23);
        quarters[half][2] = _mm512_unpacklo_epi64(high01, high23);
        quarters[half][3] = _mm512_unpackhi_epi64(high01, high23);
    }
    for (std::size_t k = 0; k < 4; ++k) {
        _mm512_store_si512(to[k], _mm512_shuffle_i64x2(quarters[0][k], quarters[1][k], 0x88));
        _mm512_store_si512(to[k + 4], _mm512_shuffle_i64x2(quarters[0][k], quarters[1][k], 0xDD));
    }
}

// float16 values of sixteen rows, `at` bytes into each.
inline __m512 halves_of(const std::uint8_t* const* rows, std::size_t at) {
    alignas(32) std::uint16_t found[16];
    for (std::size_t r = 0; r < 16; ++r) __builtin_memcpy(found + r, rows[r] + at, sizeof *found);
    return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(found)));
}

// Calls `tile` with the number of rows, at most `Most`, as a constant.
template <std::size_t Most, class Tile>
void with_rows(std::size_t rows, const Tile& tile) {
    if constexpr (Most > 1)
        if (rows < Most) return with_rows<Most - 1>(rows, tile);
    tile(std::integral_constant<std::size_t, Most>{});
}

// Goes through a stretch, panel after panel. `unpack` brings one block of sixteen weight rows into a `Panel`; `tile`
// computes up to `TileRows` rows of x, packed as `Row`s, with the panels of all blocks.
template <class Panel, class Row, std::size_t TileRows, class Unpack, class Tile>
void block_product(const ProductJob& job, std::size_t blocks, std::size_t block_bytes, const Unpack& unpack,
                   const Tile& tile) {
    auto* room = static_cast<Panel*>(job.room);
    const std::size_t row_bytes = blocks * block_bytes;
    for (std::size_t first = job.first; first < job.last; first += product_panel) {
        const std::size_t many = std::min(product_panel, job.last - first);
        const std::uint8_t* rows[product_panel];  // of a panel that is not whole the last row again
        for (std::size_t r = 0; r < product_panel; ++r)
            rows[r] = job.weights + (first + std::min(r, many - 1)) * row_bytes;
        for (std::size_t b = 0; b < blocks; ++b) unpack(rows, b * block_bytes, room[b]);
        const std::size_t next = first + many, following = std::min(product_panel, job.n_out - next);
        Ahead ahead(job.weights + next * row_bytes, following * row_bytes, (job.rows + TileRows - 1) / TileRows);
        const auto wanted = static_cast<__mmask16>((1U << many) - 1);
        for (std::size_t row = 0; row < job.rows; row += TileRows) {
            ahead.step();
            const std::size_t left = job.rows - row;
            float* out = job.out + row * job.n_out + first;
            for (std::size_t r = TileRows; r < 2 * TileRows && r < left; ++r)
                __builtin_prefetch(out + r * job.n_out, 1);
            const Row* x = static_cast<const Row*>(job.x) + row * blocks;
            with_rows<TileRows>(left, [&](auto count) { tile(count, room, x, out, wanted); });
        }
    }
}

}  // namespace
}  // namespace bitloss
