#pragma once
// Bounds of the types an audit casts to, and the casts, for one instruction set. See lanes.hpp for how it is compiled.
#include "audit.hpp"
#include "lanes.hpp"

namespace bitloss {
namespace {
namespace audit {

constexpr std::int32_t infinity = 0x7f800000, least_normal = 0x00800000, mantissa = 0x007fffff;
constexpr std::int32_t rule_low = 0x387ba883, rule_high = 0x477fe000;  // the least float32 >= 6e-5, and 65504
constexpr std::int32_t f16_normal = 0x38800000, f16_overflow = 0x477ff000, f16_zero = 0x33000000;  // >= 65520, <= 2^-25
constexpr std::int32_t bf16_overflow = 0x7f7f8000, bf16_zero = 0x00008000;  // >= 2^128 - 2^119, <= 2^-134
constexpr std::int32_t f16_lost = 0x1fff, bf16_lost = 0xffff;               // bits of a normal number that are cut off

// Sizes (magnitudes' bits, finite) rounded to nearest even, as float32. Of what overflows the value is of no use.
BITLOSS_INLINE Floats as_f16(const Ints& size) {
    const Ints normal = (size + all(0xfff) + ((size >> 13) & all(1))) & all(~f16_lost);
    // The last bit of 0.5 is that of F16's subnormals: the addition does the rounding.
    const Floats subnormal = (from_bits(size) + all(0.5F)) - all(0.5F);
    return select(size < all(f16_normal), subnormal, from_bits(normal));
}
BITLOSS_INLINE Floats as_bf16(const Ints& size) {
    return from_bits((size + all(0x7fff) + ((size >> 16) & all(1))) & all(~bf16_lost));
}

}  // namespace audit
}  // namespace
}  // namespace bitloss
