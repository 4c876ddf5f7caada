// The product with blocks of Q6_K, sixteen results to a vector; flags in CMakeLists.txt.
//
// Everything within a block is a sum of whole numbers, which have no order; only blocks are added as floats.
#include <immintrin.h>

#include <algorithm>
#include <cmath>

#include "product.hpp"
#include "product_turn.hpp"

namespace bitloss {
namespace {

constexpr std::size_t entries = 256, parts = 16, fours = entries / 4;  // a part of 16 entries has a scale of its own
constexpr std::size_t high_at = 128, scales_at = 192, scale_at = 208, block_bytes = 210;
constexpr std::size_t tile_rows = 6;

// Entries of a weight are 0 .. 63 less 32; the sum of a part begins with what leaving out the 32 adds, taken off.
struct RowBlock {
    std::int32_t four[fours];   // four entries, a byte each
    std::int32_t begin[parts];  // -32 times the sum of a part
    float scale;
};

struct alignas(64) PanelBlock {
    std::uint8_t four[fours][64];  // of sixteen weight rows, four entries each
    std::int32_t part[parts][product_panel];
    float scale[product_panel];
};

static_assert(sizeof(RowBlock) <= entries * sizeof(float));
static_assert(sizeof(PanelBlock) <= product_panel * entries * sizeof(float));

// As quantize_row_q8_K_ref of libggml-base (ggml/src/ggml-quants.c): the entry of largest magnitude becomes -127.
RowBlock quantized(const float* x) {
    float largest = 0, extreme = 0;
    for (std::size_t i = 0; i < entries; ++i)
        if (std::fabs(x[i]) > largest) {
            largest = std::fabs(x[i]);
            extreme = x[i];
        }
    const float factor = largest != 0 ? -127.F / extreme : 0;
    // of a block so small that its factor is infinite libggml makes zeros
    const __m512 every = _mm512_set1_ps(std::isinf(factor) ? 0 : factor);
    RowBlock block;
    auto* bytes = reinterpret_cast<std::int8_t*>(block.four);
    for (std::size_t i = 0; i < entries; i += 16) {
        const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), every));
        block.begin[i / 16] = -32 * _mm512_reduce_add_epi32(whole);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes + i), _mm512_cvtsepi32_epi8(whole));
    }
    block.scale = largest != 0 ? 1 / factor : 0;
    return block;
}

// One block of sixteen weight rows.
void unpack(const std::uint8_t* const* rows, std::size_t at, PanelBlock& panel) {
    const __m512i low = _mm512_set1_epi8(0x0F), high = _mm512_set1_epi8(0x30);
    const auto either = [&](__m512i four, __m512i two) {
        return _mm512_or_si512(_mm512_and_si512(four, low), _mm512_and_si512(two, high));
    };
    for (std::size_t half = 0; half < 2; ++half) {  // what a shift brings over from the next byte is masked away
        __m512i quarter[4][8];  // entries 0-31, 32-63, 64-95, 96-127 of the half
        for (std::size_t j = 0; j < 8; ++j) {
            const std::uint8_t* row = rows[first_row(j)] + at;
            const std::uint8_t* other = rows[first_row(j) + 4] + at;
            const auto from = [&](std::size_t place) { return side_by_side(row + place, other + place); };
            const __m512i first = from(64 * half), second = from(64 * half + 32), top = from(high_at + 32 * half);
            quarter[0][j] = either(first, _mm512_slli_epi32(top, 4));
            quarter[1][j] = either(second, _mm512_slli_epi32(top, 2));
            quarter[2][j] = either(_mm512_srli_epi32(first, 4), top);
            quarter[3][j] = either(_mm512_srli_epi32(second, 4), _mm512_srli_epi32(top, 2));
        }
        for (std::size_t k = 0; k < 4; ++k) turn(quarter[k], panel.four + 32 * half + 8 * k);
    }
    for (std::size_t r = 0; r < product_panel; ++r) {
        const auto* scales = reinterpret_cast<const std::int8_t*>(rows[r] + at + scales_at);
        for (std::size_t s = 0; s < parts; ++s) panel.part[s][r] = scales[s];
    }
    _mm512_store_ps(panel.scale, halves_of(rows, at + scale_at));
}

template <std::size_t Rows>
[[gnu::always_inline]] inline void tile(const PanelBlock* panel, const RowBlock* x, std::size_t blocks, float* out,
                                        std::size_t n_out, __mmask16 wanted) {
    __m512 sums[Rows];
#pragma GCC unroll 6
    for (std::size_t r = 0; r < Rows; ++r) sums[r] = _mm512_setzero_ps();
    for (std::size_t b = 0; b < blocks; ++b, ++panel, ++x) {
        __m512i whole[Rows];
#pragma GCC unroll 6
        for (std::size_t r = 0; r < Rows; ++r) whole[r] = _mm512_setzero_si512();
        for (std::size_t s = 0; s < parts; ++s) {
            __m512i part[Rows];
#pragma GCC unroll 6
            for (std::size_t r = 0; r < Rows; ++r) part[r] = _mm512_set1_epi32(x[r * blocks].begin[s]);
#pragma GCC unroll 4
            for (std::size_t k = 0; k < 4; ++k) {
                const __m512i weights = _mm512_load_si512(panel->four[4 * s + k]);
#pragma GCC unroll 6
                for (std::size_t r = 0; r < Rows; ++r)
                    part[r] = _mm512_dpbusd_epi32(part[r], weights, _mm512_set1_epi32(x[r * blocks].four[4 * s + k]));
            }
            const __m512i scale = _mm512_load_si512(panel->part[s]);
#pragma GCC unroll 6
            for (std::size_t r = 0; r < Rows; ++r)
                whole[r] = _mm512_add_epi32(whole[r], _mm512_mullo_epi32(part[r], scale));
        }
        const __m512 scale = _mm512_load_ps(panel->scale);
#pragma GCC unroll 6
        for (std::size_t r = 0; r < Rows; ++r) {
            const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(whole[r]), scale);
            sums[r] = _mm512_fmadd_ps(scaled, _mm512_set1_ps(x[r * blocks].scale), sums[r]);
        }
    }
#pragma GCC unroll 6
    for (std::size_t r = 0; r < Rows; ++r) _mm512_mask_storeu_ps(out + r * n_out, wanted, sums[r]);
}

}  // namespace

void pack_q6_k(const float* x, void* to, std::size_t rows, std::size_t width) {
    auto* blocks = static_cast<RowBlock*>(to);
    for (std::size_t i = 0; i < rows * width / entries; ++i) blocks[i] = quantized(x + i * entries);
}

void product_q6_k(const ProductJob& job) {
    const std::size_t blocks = job.width / entries;
    block_product<PanelBlock, RowBlock, tile_rows>(
        job, blocks, block_bytes, unpack,
        [&](auto rows, const PanelBlock* room, const RowBlock* x, float* out, __mmask16 wanted) {
            tile<decltype(rows)::value>(room, x, blocks, out, job.n_out, wanted);
        });
}

}  // namespace bitloss
