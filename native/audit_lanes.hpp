#pragma once
// The audit's kernels for one instruction set. See lanes.hpp for how it is compiled.
#include "audit.hpp"
#include "lanes.hpp"

namespace bitloss {
namespace {
namespace audit {

constexpr std::size_t piece = 4096;  // 16 kB: read twice, the second time from the first-level cache

constexpr std::int32_t infinity = 0x7f800000, least_normal = 0x00800000;
constexpr std::int32_t rule_low = 0x387ba883, rule_high = 0x477fe000;  // the least float32 >= 6e-5, and 65504
constexpr std::int32_t f16_overflow = 0x477ff000, f16_zero = 0x33000000;    // >= 65520, <= 2^-25
constexpr std::int32_t bf16_overflow = 0x7f7f8000, bf16_zero = 0x00008000;  // >= 2^128 - 2^119, <= 2^-134

BITLOSS_INLINE Ints count(const Mask& m) { return select(m, all(1), all(0)); }

BITLOSS_INLINE std::uint64_t sum(const Ints& x) {
    std::int32_t each[lanes];
    store(each, x);
    std::uint64_t total = 0;
    for (int i = 0; i < lanes; ++i) total += static_cast<std::uint32_t>(each[i]);
    return total;
}

// Sizes (magnitudes' bits, finite) rounded to nearest even, as float32. Of what overflows the value is of no use.
BITLOSS_INLINE Floats as_f16(const Ints& size) {
    const Ints normal = (size + all(0xfff) + ((size >> 13) & all(1))) & all(~0x1fff);
    // The last bit of 0.5 is that of F16's subnormals: the addition does the rounding.
    const Floats subnormal = (from_bits(size) + all(0.5F)) - all(0.5F);
    return select(size < all(0x38800000), subnormal, from_bits(normal));
}
BITLOSS_INLINE Floats as_bf16(const Ints& size) {
    return from_bits((size + all(0x7fff) + ((size >> 16) & all(1))) & all(~0xffff));
}

struct CastLanes {
    Ints changed = all(0);
    Floats error = all(0.0F), relative = all(0.0F);

    // `size` is 0 where the value is not finite: nothing is lost there.
    BITLOSS_INLINE void add(const Ints& size, const Floats& rounded, std::int32_t overflow) {
        const Floats x = from_bits(size);
        const Mask over = all(overflow - 1) < size;
        changed = changed + count((x != rounded) | over);
        const Floats by = select(over, all(0.0F), absolute(x - rounded));
        error = larger(error, by);
        // Division is slow, and few values come near the largest share; the product may be off by its last bit, and by
        // more where it is subnormal.
        const Mask near = (relative * x < by * all(1.000001F)) | ((x < all(0x1p-100F)) & (all(0.0F) < by));
        if (any(near)) relative = larger(relative, select(by != all(0.0F), by / x, all(0.0F)));
    }

    void flush(CastTally& into) const {
        into.changed += sum(changed);
        const float by = largest(error), share = largest(relative);
        into.error = into.error > by ? into.error : by;
        into.relative = into.relative > share ? into.relative : share;
    }
};

// Values at the ends of the range, one by one: they are few.
void count_ends(const float* x, FloatTally& tally) {
    for (int i = 0; i < lanes; ++i) {
        std::uint32_t raw;
        __builtin_memcpy(&raw, x + i, 4);
        const std::int32_t size = static_cast<std::int32_t>(raw & 0x7fffffffU);
        if (size > infinity) ++tally.nans;
        if (size == infinity) ++(raw >> 31 ? tally.negative_infinities : tally.positive_infinities);
        if (size != 0 && size < least_normal) ++tally.histogram[31 - __builtin_clz(static_cast<std::uint32_t>(size))];
        if (size > rule_high && size < infinity) ++tally.above;
        if (size >= f16_overflow && size < infinity) ++tally.f16.overflowed;
        if (size >= bf16_overflow && size < infinity) ++tally.bf16.overflowed;
        if (size != 0 && size <= f16_zero) ++tally.f16.zeroed;
        if (size != 0 && size <= bf16_zero) ++tally.bf16.zeroed;
    }
}

// Counts upper halves; two sets of counters, used in turn: an addition need not wait for the one before.
BITLOSS_INLINE void count_tops(const float* x, std::uint32_t* tops) {
    for (int i = 0; i < lanes; ++i) {
        std::uint16_t top;
        __builtin_memcpy(&top, reinterpret_cast<const unsigned char*>(x + i) + 2, 2);
        ++tops[top + (i % 2 ? words : 0)];
    }
}

// n is a multiple of the lanes and at most `piece`.
void tally_piece(const float* x, std::size_t n, FloatTally& tally, std::uint32_t* tops) {
    CastLanes f16, bf16;
    // What is known so far, so that the shares of most values need not be computed.
    f16.relative = all(tally.f16.relative);
    bf16.relative = all(tally.bf16.relative);
    Ints zeros = all(0), below = all(0), top = all(0), least = all(infinity);
    for (std::size_t at = 0; at < n; at += lanes) {
        const Ints raw = bits(load<Floats>(x + at)) & all(0x7fffffff);
        const Mask zero = raw == all(0), ends = (all(rule_high) < raw) | ((raw < all(f16_zero + 1)) & !zero);
        Ints size = raw;
        if (any(ends)) {
            count_ends(x + at, tally);
            size = select(raw < all(infinity), raw, all(0));
        }
        count_tops(x + at, tops);
        zeros = zeros + count(zero);
        below = below + count((raw < all(rule_low)) & !zero);
        top = larger(top, size);
        least = smaller(least, select(zero, all(infinity), raw));
        f16.add(size, as_f16(size), f16_overflow);
        bf16.add(size, as_bf16(size), bf16_overflow);
    }
    tally.zeros += sum(zeros);
    tally.below += sum(below);
    std::int32_t each[lanes];
    store(each, top);
    for (int i = 0; i < lanes; ++i) tally.largest = tally.largest > each[i] ? tally.largest : each[i];
    store(each, least);
    for (int i = 0; i < lanes; ++i) tally.smallest = tally.smallest < each[i] ? tally.smallest : each[i];
    f16.flush(tally.f16);
    bf16.flush(tally.bf16);
}

// Whether the lower halves are all zero.
bool exact_in_bf16(const float* x, std::size_t n) {
    for (std::size_t at = 0; at < n;) {
        Ints some = all(0);
        for (const std::size_t end = at + 8 * lanes < n ? at + 8 * lanes : n; at < end; at += lanes)
            some = some | bits(load<Floats>(x + at));
        if (any((some & all(0xffff)) != all(0))) return false;
    }
    return true;
}

void tally(const float* x, std::size_t n, FloatTally& out, std::uint32_t* exact, std::uint32_t* tops) {
    while (n > 0) {
        const std::size_t whole = (n < piece ? n : piece) / lanes * lanes;
        if (whole == 0) {  // fewer than the lanes: zeros behind them, not counted
            float rest[lanes] = {};
            for (std::size_t i = 0; i < n; ++i) rest[i] = x[i];
            tally_piece(rest, lanes, out, tops);
            out.zeros -= lanes - n;
            return;
        }
        if (exact_in_bf16(x, whole))
            for (std::size_t i = 0; i < whole; i += lanes) count_tops(x + i, exact);
        else
            tally_piece(x, whole, out, tops);
        x += whole;
        n -= whole;
    }
}

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

constexpr AuditKernels kernels{audit::tally, audit::mark};

}  // namespace
}  // namespace bitloss
