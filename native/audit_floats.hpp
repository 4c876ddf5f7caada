#pragma once
// Counting values of 32 bits for one instruction set. See lanes.hpp for how it is compiled.
//
// Values of 32 bits, as words of 16 (audit_words.hpp): of most all that has to be known is the exponent and whether
// F16 and BF16 change them. Vectors with a value that breaks a record, or lies beyond F16's normal numbers, are counted
// in full.
#include "audit_casts.hpp"
#include "audit_words.hpp"

namespace bitloss {
namespace {
namespace audit {

// The low bytes of four values each, in any order.
BITLOSS_INLINE void store_low_bytes(std::uint8_t* to, const Ints (&x)[4]) {
    for (int p = 0; p < parts; ++p) {
        std::uint8_t* at = to + p * BITLOSS_VECTOR_BYTES;
#if BITLOSS_VECTOR_BYTES == 64
        const __m512i low = _mm512_maskz_packs_epi32(~0U, (__m512i)x[0].part[p], (__m512i)x[1].part[p]);
        const __m512i high = _mm512_maskz_packs_epi32(~0U, (__m512i)x[2].part[p], (__m512i)x[3].part[p]);
        const __m512i bytes = _mm512_maskz_packus_epi16(~0ULL, low, high);
#elif BITLOSS_VECTOR_BYTES == 32
        const __m256i low = _mm256_packs_epi32((__m256i)x[0].part[p], (__m256i)x[1].part[p]);
        const __m256i high = _mm256_packs_epi32((__m256i)x[2].part[p], (__m256i)x[3].part[p]);
        const __m256i bytes = _mm256_packus_epi16(low, high);
#elif defined(__SSE2__)
        const __m128i low = _mm_packs_epi32((__m128i)x[0].part[p], (__m128i)x[1].part[p]);
        const __m128i high = _mm_packs_epi32((__m128i)x[2].part[p], (__m128i)x[3].part[p]);
        const __m128i bytes = _mm_packus_epi16(low, high);
#else
        std::uint8_t bytes[16];
        for (int i = 0; i < 16; ++i) bytes[i] = static_cast<std::uint8_t>(x[i / 4].part[p][i % 4]);
#endif
        __builtin_memcpy(at, &bytes, BITLOSS_VECTOR_BYTES);
    }
}

// Counts what a cast does to a vector; `size` is 0 where the value is not finite: nothing is lost there.
BITLOSS_INLINE void add_cast(const Ints& size, const Floats& rounded, std::int32_t overflow, CastTally& into) {
    const Floats x = from_bits(size);
    const Mask over = all(overflow - 1) < size;
    into.changed += sum(add_one(all(0), (x != rounded) | over));
    const Floats by = select(over, all(0.0F), absolute(x - rounded));
    if (any(all(into.error) < by)) into.error = largest(by);
    // Division is slow, and few values come near the largest share; the product may be off by its last bit, and by
    // more where it is subnormal.
    const Mask near = (all(into.relative) * x < by * all(1.000001F)) | ((x < all(0x1p-100F)) & (all(0.0F) < by));
    if (!any(near)) return;
    const float share = largest(select(by != all(0.0F), by / x, all(0.0F)));
    into.relative = into.relative > share ? into.relative : share;
}

// Values at the ends of the range, one by one: they are few.
[[gnu::noinline]] void count_ends(const float* x, FloatTally& tally) {
    for (int i = 0; i < lanes; ++i) {
        std::uint32_t raw;
        __builtin_memcpy(&raw, x + i, 4);
        const std::int32_t size = static_cast<std::int32_t>(raw & 0x7fffffffU);
        if (size > infinity) ++tally.nans;
        if (size == infinity) ++(raw >> 31 ? tally.negative_infinities : tally.positive_infinities);
        if (size != 0 && size < least_normal) ++tally.subnormals[31 - __builtin_clz(static_cast<std::uint32_t>(size))];
        if (size > rule_high && size < infinity) ++tally.above;
        if (size >= f16_overflow && size < infinity) ++tally.f16.overflowed;
        if (size >= bf16_overflow && size < infinity) ++tally.bf16.overflowed;
        if (size != 0 && size <= f16_zero) ++tally.f16.zeroed;
        if (size != 0 && size <= bf16_zero) ++tally.bf16.zeroed;
    }
}

// Counts a vector, all but its exponents.
[[gnu::noinline]] void count_in_full(const float* x, FloatTally& tally) {
    const Ints raw = bits(load<Floats>(x)) & all(0x7fffffff);
    const Mask zero = raw == all(0);
    if (any((all(rule_high) < raw) | ((raw < all(f16_zero + 1)) & !zero))) count_ends(x, tally);
    const Ints size = select(raw < all(infinity), raw, all(0));
    tally.below += sum(add_one(all(0), (raw < all(rule_low)) & !zero));
    if (any(all(tally.largest) < size)) {
        std::int32_t each[lanes];
        store(each, size);
        for (int i = 0; i < lanes; ++i) tally.largest = tally.largest > each[i] ? tally.largest : each[i];
    }
    if (any((raw < all(tally.smallest)) & !zero)) {
        std::int32_t each[lanes];
        store(each, raw);
        for (int i = 0; i < lanes; ++i)
            if (each[i] != 0 && each[i] < tally.smallest) tally.smallest = each[i];
    }
    add_cast(size, as_f16(size), f16_overflow, tally.f16);
    add_cast(size, as_bf16(size), bf16_overflow, tally.bf16);
}

// Normal numbers of a mantissa (without its first bit) from `first` to `last` may have a larger share of error than
// `relative`, those above `high` a larger error than `error`.
struct Bound {
    std::int32_t high, first, last;

    // `half`: half a place of the type, in places of float32.
    Bound(const CastTally& cast, std::int32_t half) {
        std::int32_t raw;
        __builtin_memcpy(&raw, &cast.error, 4);
        const int places = 23 - __builtin_ctz(static_cast<unsigned>(half));  // half a place of 2^e is 2^(e - places)
        const std::int32_t field = (raw >> 23) + places;
        high = field > 254 ? infinity - 1 : (field << 23) + mantissa;
        first = 1;
        last = mantissa;
        if (cast.relative > 0x1p-20F) {
            // error / (2^23 + mantissa) > relative, error at most `half` and at most the mantissa; 1e-6 for rounding
            const double most = static_cast<double>(half) / static_cast<double>(cast.relative) * 1.000001 - 0x1p23;
            first = static_cast<std::int32_t>(static_cast<double>(cast.relative) * 0x1p23 * 0.999999);
            last = most < 0 ? 0 : most < mantissa ? static_cast<std::int32_t>(most) + 1 : mantissa;
        }
    }
};

// Plain sizes lie above `low` and below `high`, and their parts not from `first` to `last`: both casts change each of
// them, and none sets a record. The others are looked at by `count_small`, where `least` and `most` are bounds.
struct Bounds {
    Ints low, high, shift, end, least, most;
    Floats f16_error, f16_relative, bf16_error, bf16_relative;

    BITLOSS_INLINE void set(const FloatTally& tally) {
        const Bound f16(tally.f16, 0x1000), bf16(tally.bf16, 0x8000);
        const auto lesser = [](std::int32_t a, std::int32_t b) { return a < b ? a : b; };
        const auto greater = [](std::int32_t a, std::int32_t b) { return a > b ? a : b; };
        const bool share = f16.first <= f16.last;
        const std::int32_t first = share ? lesser(f16.first, bf16.first) : bf16.first;
        const std::int32_t last = share ? greater(f16.last, bf16.last) : bf16.last;
        low = all(greater(tally.smallest, f16_normal) - 1);
        high = all(lesser(lesser(tally.largest, rule_high), lesser(f16.high, bf16.high)) + 1);
        least = all(greater(tally.smallest, f16_zero + 1) - 2);
        most = all(lesser(tally.largest, rule_high) + 1);
        // A part rotated so that `last` is the end of the mantissas: one comparison will do.
        shift = all(mantissa - last);
        end = all(first <= last ? mantissa - last + first : mantissa + 1);
        f16_error = all(tally.f16.error);
        f16_relative = all(tally.f16.relative);
        bf16_error = all(tally.bf16.error);
        bf16_relative = all(tally.bf16.relative);
    }
    BITLOSS_INLINE Mask plain(const Ints& size) const {
        return (low < size) & (size < high) & (all(0) < (size & all(f16_lost))) & (((size + shift) & all(mantissa)) < end);
    }
};

struct Changed {
    Ints f16 = all(0), bf16 = all(0), below = all(0);
};

// Counts a vector of numbers down to 2^-25, and zeros; returns false, and counts nothing, where one sets a record.
BITLOSS_INLINE bool count_small(const Ints& size, const Bounds& bounds, Changed& changed) {
    const Floats x = from_bits(size), wider = all(1.000001F);
    const Floats f16 = absolute(x - as_f16(size)), bf16 = absolute(x - as_bf16(size));
    // zero is 2^31 - 1 here
    const Ints there = (size - all(1)) & all(0x7fffffff);
    if (!every((size < bounds.most) & (bounds.least < there) & (f16 <= bounds.f16_error) &
               (bf16 <= bounds.bf16_error) & (f16 * wider <= bounds.f16_relative * x) &
               (bf16 * wider <= bounds.bf16_relative * x)))
        return false;
    changed.f16 = add_one(changed.f16, all(0.0F) < f16);
    changed.bf16 = add_one(changed.bf16, all(0.0F) < bf16);
    changed.below = add_one(changed.below, there < all(rule_low - 1));
    return true;
}

// n is a multiple of 4 vectors and at most a piece. `Small`: vectors are expected not to be plain. Returns how many were.
template <bool Small>
[[gnu::noinline]] std::size_t tally_piece(const float* x, std::size_t n, FloatTally& tally) {
    alignas(64) std::uint8_t fields[piece];
    Changed changed;
    std::size_t plain = 0, counted = 0;
    Bounds bounds;
    bounds.set(tally);
    for (std::size_t at = 0; at < n; at += 4 * lanes) {
        Ints field[4];
        for (int v = 0; v < 4; ++v) {
            const float* from = x + at + v * lanes;
            const Ints size = bits(load<Floats>(from)) & all(0x7fffffff);
            const bool is_plain = every(bounds.plain(size));
            plain += is_plain;
            if (!Small && is_plain) {
                ++counted;
            } else if (!count_small(size, bounds, changed)) {
                count_in_full(from, tally);
                bounds.set(tally);
            }
            field[v] = size >> 23;
        }
        store_low_bytes(fields + at, field);
    }
    tally.values += n;
    tally.below += sum(changed.below);
    tally.f16.changed += sum(changed.f16) + counted * lanes;
    tally.bf16.changed += sum(changed.bf16) + counted * lanes;
    count_bytes(fields, n, static_cast<unsigned>(tally.largest >> 23), tally.fields);
    return plain;
}

// Whether the lower halves are all zero.
BITLOSS_INLINE bool exact_in_bf16(const float* x, std::size_t n) {
    for (std::size_t at = 0; at < n;) {
        Ints some = all(0);
        for (const std::size_t end = at + 8 * lanes < n ? at + 8 * lanes : n; at < end; at += lanes)
            some = some | bits(load<Floats>(x + at));
        if (any((some & all(bf16_lost)) != all(0))) return false;
    }
    return true;
}

// n is at most a piece.
BITLOSS_INLINE void upper_halves(const float* x, std::size_t n, std::uint16_t* to) {
    for (std::size_t i = 0; i < n; ++i) {
        std::uint32_t raw;
        __builtin_memcpy(&raw, x + i, 4);
        to[i] = static_cast<std::uint16_t>(raw >> 16);
    }
}

// Writes n values, a multiple of 4 vectors, as F16 in any order; returns whether they all are.
BITLOSS_INLINE bool exact_in_f16(const float* x, std::size_t n, std::uint16_t* to) {
    for (std::size_t at = 0; at < n; at += 2 * lanes) {
        const Floats a = load<Floats>(x + at), b = load<Floats>(x + at + lanes);
        const Ints low = to_half(a), high = to_half(b);
        if (!every((bits(from_half(low)) == bits(a)) & (bits(from_half(high)) == bits(b)))) return false;
        store(to + at, low | (high << 16));
    }
    return true;
}

void tally_floats(const float* x, std::size_t n, FloatTally& out, WordTally& bf16, std::uint32_t* bf16_table,
                  WordTally& f16, std::uint32_t* f16_table) {
    constexpr std::size_t step = 4 * lanes;
    alignas(64) std::uint16_t as_words[piece];
    bool small = false;
    while (n > 0) {
        const std::size_t whole = (n < piece ? n : piece) / step * step;
        if (whole == 0) {  // zeros behind them, not counted
            float rest[step] = {};
            for (std::size_t i = 0; i < n; ++i) rest[i] = x[i];
            tally_piece<false>(rest, step, out);
            out.fields[0] -= step - n;
            out.values -= step - n;
            return;
        }
        if (exact_in_bf16(x, whole)) {
            upper_halves(x, whole, as_words);
            tally_words<BF16>(as_words, whole, bf16, bf16_table);
        } else if (exact_in_f16(x, whole, as_words)) {
            tally_words<F16>(as_words, whole, f16, f16_table);
        } else {
            const std::size_t plain = small ? tally_piece<true>(x, whole, out) : tally_piece<false>(x, whole, out);
            small = plain < whole / lanes / 4 * 3;
        }
        x += whole;
        n -= whole;
    }
}

}  // namespace audit
}  // namespace
}  // namespace bitloss
