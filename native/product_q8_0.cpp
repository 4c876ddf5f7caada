// The product with blocks of Q8_0, sixteen results to a vector; flags in CMakeLists.txt.
//
// The sums of lane l of sixteen results lie in one vector, so a whole block takes eight steps for each row of x, the
// product of the scales is taken once for all eight, and adding halves to halves needs no shuffles.
#include <immintrin.h>

#include <algorithm>
#include <cmath>

#include "product.hpp"
#include "product_turn.hpp"

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

// One block of sixteen weight rows.
void unpack(const std::uint8_t* const* rows, std::size_t at, PanelBlock& panel) {
    const __m512i flip = _mm512_set1_epi32(static_cast<int>(0x80808080U));  // plus 128
    __m512i v[8];
    for (std::size_t j = 0; j < 8; ++j) {
        const std::size_t row = first_row(j);
        v[j] = _mm512_xor_si512(side_by_side(rows[row] + at + 2, rows[row + 4] + at + 2), flip);
    }
    turn(v, panel.four);
    _mm512_store_ps(panel.scale, halves_of(rows, at));
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

void pack_q8_0(const float* x, void* to, std::size_t rows, std::size_t width) {
    auto* blocks = static_cast<RowBlock*>(to);
    for (std::size_t i = 0; i < rows * width / entries; ++i) blocks[i] = quantized(x + i * entries);
}

void product_q8_0(const ProductJob& job) {
    const std::size_t blocks = job.width / entries;
    block_product<PanelBlock, RowBlock, tile_rows>(
        job, blocks, block_bytes, unpack,
        [&](auto rows, const PanelBlock* room, const RowBlock* x, float* out, __mmask16 wanted) {
            tile<decltype(rows)::value>(room, x, blocks, out, job.n_out, wanted);
        });
}

}  // namespace bitloss
