// The product with blocks of Q8_0, sixteen results to a vector; flags in CMakeLists.txt.
//
// The sums of lane l of sixteen results lie in one vector, so a whole block takes eight steps for each row of x, the
// product of the scales is taken once for all eight, and adding halves to halves needs no shuffles.
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "product.hpp"

namespace bitloss {
namespace {

constexpr std::size_t entries = 32, lanes = 8, block_bytes = 2 + entries;  // a float16 scale, then int8 entries
constexpr std::size_t tile_rows = 3;                                       // 24 sums in 32 registers

// The instruction multiplies an unsigned by a signed byte: weights are handed to it plus 128, and the sum begins with
// what that adds, taken off.
struct RowBlock {
    std::int32_t begin[lanes];  // -128 times the sum of four entries
    std::int32_t four[lanes];   // four entries, a byte each
    float scale;
};

struct alignas(64) PanelBlock {
    std::uint8_t four[lanes][64];  // of sixteen weight rows, four entries each, plus 128
    float scale[product_panel];
};

static_assert(sizeof(RowBlock) <= entries * sizeof(float));
static_assert(sizeof(PanelBlock) <= product_panel * entries * sizeof(float));

// As quantize_row_q8_0 of libggml-cpu (ggml/src/ggml-cpu/arch/x86/quants.c).
RowBlock quantized(const float* x) {
    float largest = 0;
    for (std::size_t i = 0; i < entries; ++i) largest = std::max(largest, std::fabs(x[i]));
    const __m512 factor = _mm512_set1_ps(largest != 0 ? 127.F / largest : 0);
    RowBlock block;
    auto* bytes = reinterpret_cast<std::int8_t*>(block.four);
    for (std::size_t i = 0; i < entries; i += 16) {
        const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), factor));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes + i), _mm512_cvtsepi32_epi8(whole));
    }
    for (std::size_t l = 0; l < lanes; ++l) {
        const std::int8_t* four = bytes + 4 * l;
        block.begin[l] = -128 * (four[0] + four[1] + four[2] + four[3]);
    }
    block.scale = _cvtsh_ss(_cvtss_sh(largest / 127.F, _MM_FROUND_TO_NEAREST_INT));
    return block;
}

// One block of sixteen weight rows, turned so that a vector holds the same entries of all.
void turn(const std::uint8_t* const* rows, std::size_t at, PanelBlock& panel) {
    // rows 0 4, 1 5, 2 6, 3 7 and 8 12, 9 13, ...: what comes out is in order
    __m512i v[8];
    for (std::size_t j = 0; j < 8; ++j) {
        const std::size_t row = j < 4 ? j : j + 4;
        const auto half = [&](std::size_t r) {
            return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[r] + at + 2));
        };
        v[j] = _mm512_inserti64x4(_mm512_castsi256_si512(half(row)), half(row + 4), 1);
    }
    __m512i quarters[2][4];  // entry k of rows 0-3 | entry k + 4 of rows 0-3 | k of rows 4-7 | k + 4 of rows 4-7
    for (std::size_t half = 0; half < 2; ++half) {
        const __m512i* w = v + 4 * half;
        const __m512i low01 = _mm512_unpacklo_epi32(w[0], w[1]), low23 = _mm512_unpacklo_epi32(w[2], w[3]);
        const __m512i high01 = _mm512_unpackhi_epi32(w[0], w[1]), high23 = _mm512_unpackhi_epi32(w[2], w[3]);
        quarters[half][0] = _mm512_unpacklo_epi64(low01, low23);
        quarters[half][1] = _mm512_unpackhi_epi64(low01, low23);
        quarters[half][2] = _mm512_unpacklo_epi64(high01, high23);
        quarters[half][3] = _mm512_unpackhi_epi64(high01, high23);
    }
    const __m512i flip = _mm512_set1_epi32(static_cast<int>(0x80808080U));  // plus 128
    for (std::size_t k = 0; k < 4; ++k) {
        const __m512i first = _mm512_shuffle_i64x2(quarters[0][k], quarters[1][k], 0x88);
        const __m512i second = _mm512_shuffle_i64x2(quarters[0][k], quarters[1][k], 0xDD);
        _mm512_store_si512(panel.four[k], _mm512_xor_si512(first, flip));
        _mm512_store_si512(panel.four[k + 4], _mm512_xor_si512(second, flip));
    }
    alignas(32) std::uint16_t scales[product_panel];
    for (std::size_t r = 0; r < product_panel; ++r) std::memcpy(scales + r, rows[r] + at, sizeof *scales);
    _mm512_store_ps(panel.scale, _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(scales))));
}

template <std::size_t Rows>
[[gnu::always_inline]] inline void tile(const PanelBlock* panel, const RowBlock* x, std::size_t blocks, float* out,
                                        std::size_t n_out, __mmask16 wanted) {
    __m512 sums[Rows][lanes];
#pragma GCC unroll 3
    for (std::size_t r = 0; r < Rows; ++r)
#pragma GCC unroll 8
        for (std::size_t l = 0; l < lanes; ++l) sums[r][l] = _mm512_setzero_ps();
    for (std::size_t b = 0; b < blocks; ++b, ++panel, ++x) {
        const __m512 own = _mm512_load_ps(panel->scale);
        __m512 scale[Rows];
#pragma GCC unroll 3
        for (std::size_t r = 0; r < Rows; ++r) scale[r] = _mm512_mul_ps(own, _mm512_set1_ps(x[r * blocks].scale));
#pragma GCC unroll 8
        for (std::size_t l = 0; l < lanes; ++l) {
            const __m512i weights = _mm512_load_si512(panel->four[l]);
#pragma GCC unroll 3
            for (std::size_t r = 0; r < Rows; ++r) {
                const RowBlock& row = x[r * blocks];
                const __m512i whole = _mm512_dpbusd_epi32(_mm512_set1_epi32(row.begin[l]), weights,
                                                          _mm512_set1_epi32(row.four[l]));
                sums[r][l] = _mm512_fmadd_ps(scale[r], _mm512_cvtepi32_ps(whole), sums[r][l]);
            }
        }
    }
#pragma GCC unroll 3
    for (std::size_t r = 0; r < Rows; ++r) {
        const __m512* s = sums[r];
        const auto add = [](__m512 a, __m512 b) { return _mm512_add_ps(a, b); };
        const __m512 even = add(add(s[0], s[4]), add(s[2], s[6])), odd = add(add(s[1], s[5]), add(s[3], s[7]));
        _mm512_mask_storeu_ps(out + r * n_out, wanted, add(even, odd));
    }
}

}  // namespace

void pack_blocks(const float* x, void* to, std::size_t rows, std::size_t width) {
    auto* blocks = static_cast<RowBlock*>(to);
    for (std::size_t i = 0; i < rows * width / entries; ++i) blocks[i] = quantized(x + i * entries);
}

void product_blocks(const ProductJob& job) {
    const std::size_t blocks = job.width / entries, n_out = job.n_out;
    auto* room = static_cast<PanelBlock*>(job.room);
    const auto* x = static_cast<const RowBlock*>(job.x);
    for (std::size_t first = job.first; first < job.last; first += product_panel) {
        const std::size_t many = std::min(product_panel, job.last - first);
        const std::uint8_t* rows[product_panel];  // of a panel that is not whole the last row again
        for (std::size_t r = 0; r < product_panel; ++r)
            rows[r] = job.weights + (first + std::min(r, many - 1)) * blocks * block_bytes;
        for (std::size_t b = 0; b < blocks; ++b) turn(rows, b * block_bytes, room[b]);
        const auto wanted = static_cast<__mmask16>((1U << many) - 1);
        const std::size_t next = first + many, following = std::min(product_panel, n_out - next);
        Ahead ahead(job.weights + next * blocks * block_bytes, following * blocks * block_bytes,
                    (job.rows + tile_rows - 1) / tile_rows);
        for (std::size_t row = 0; row < job.rows; row += tile_rows) {
            ahead.step();
            const std::size_t left = job.rows - row;
            float* out = job.out + row * n_out + first;
            for (std::size_t r = tile_rows; r < 2 * tile_rows && r < left; ++r) __builtin_prefetch(out + r * n_out, 1);
            const RowBlock* from = x + row * blocks;
            if (left >= 3)
                tile<3>(room, from, blocks, out, n_out, wanted);
            else if (left == 2)
                tile<2>(room, from, blocks, out, n_out, wanted);
            else
                tile<1>(room, from, blocks, out, n_out, wanted);
        }
    }
}

}  // namespace bitloss
