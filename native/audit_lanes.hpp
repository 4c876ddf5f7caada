#pragma once
// The audit's kernels for one instruction set. See lanes.hpp for how it is compiled.
#include "audit_blocks.hpp"
#include "audit_floats.hpp"
#include "audit_words.hpp"
#if BITLOSS_VECTOR_BYTES == 64
#include "audit_floats512.hpp"
#include "audit_words512.hpp"
#endif

namespace bitloss {
namespace {
namespace audit {

#if BITLOSS_VECTOR_BYTES != 64
template <class Format>
void count_words(const std::uint16_t* x, std::size_t n, WordTally& tally, std::uint32_t* table, BlockTally* blocks) {
    tally_words<Format>(x, n, tally, table);
    if (blocks != nullptr) blocks_of_words<Format>(x, n / group, *blocks);
}

void count_floats(const float* x, std::size_t n, FloatTally& tally, WordTally& bf16, std::uint32_t* bf16_table,
                  WordTally& f16, std::uint32_t* f16_table, BlockTally* blocks) {
    tally_floats(x, n, tally, bf16, bf16_table, f16, f16_table);
    if (blocks != nullptr) blocks_of_floats(x, n / group, *blocks);
}
#endif

void mark(const float* x, std::size_t block, std::uint8_t* marks, std::size_t first, std::size_t end) {
    for (std::size_t b = first; b < end; ++b) {
        Ints flags = all(0);
        for (std::size_t i = 0; i < block; i += lanes) {
            const Ints raw = bits(load<Floats>(x + b * block + i)) & all(0x7fffffff);
            const Mask finite = raw < all(infinity);
            const Ints size = select(finite, raw, all(0));
            flags = flags | select(from_bits(size) != as_f16(size), all(f16_changes), all(0)) |
                    select(from_bits(size) != as_bf16(size), all(bf16_changes), all(0)) |
                    select(all(f16_overflow - 1) < size, all(f16_changes | f16_overflows), all(0)) |
                    select(all(bf16_overflow - 1) < size, all(bf16_changes | bf16_overflows), all(0)) |
                    select(finite, all(0), all(not_finite));
        }
        std::int32_t each[lanes];
        store(each, flags);
        std::int32_t some = 0;
        for (int i = 0; i < lanes; ++i) some |= each[i];
        marks[b] = static_cast<std::uint8_t>(some);
    }
}

}  // namespace audit

constexpr AuditKernels kernels{audit::count_words<audit::F16>, audit::count_words<audit::BF16>, audit::count_floats,
                               audit::mark};

}  // namespace
}  // namespace bitloss
