#pragma once
// Which blocks of Q8_0 get other bytes when their weights are cast before, for one instruction set. See lanes.hpp for
// how it is compiled.
//
// A cast keeps the order of magnitudes, so the largest of a block after it is the cast of the largest: scales come
// first, a block in every lane, and only where the cast does not change the stored scale are the quants compared. All
// operations are those of codec_q8_0.hpp; signs can be left out, as casts and rounding are symmetric.
#include "audit_casts.hpp"
#include "audit_words.hpp"
#include "codec_q8_0.hpp"

namespace bitloss {
namespace {
namespace audit {

// The largest magnitude of each lane's block, as bits: NaN and infinity are larger than all numbers.
BITLOSS_INLINE Ints top_bits(const float* x, std::size_t count) {
    machine::Floats top[lanes];
    for (std::size_t b = 0; b < lanes; ++b) {
        const float* from = x + (b < count ? b : count - 1) * group;
        machine::Ints most = (machine::Ints)machine::load_floats(from) & 0x7fffffff;
        for (std::size_t i = machine::width; i < group; i += machine::width)
            most = machine::larger(most, (machine::Ints)machine::load_floats(from + i) & 0x7fffffff);
        top[b] = (machine::Floats)most;
    }
    Ints all_tops;
    for (int p = 0; p < parts; ++p) {
        machine::Floats* square = top + p * machine::width;
        machine::transpose(square);
        machine::Ints most = (machine::Ints)square[0];
        for (int i = 1; i < machine::width; ++i) most = machine::larger(most, (machine::Ints)square[i]);
        all_tops.part[p] = most;
    }
    return all_tops;
}

// Scales of some blocks, a block in every lane.
struct Scales {
    Ints stored;
    Floats inverse;

    BITLOSS_INLINE explicit Scales(const Floats& top) {
        const Floats d = top / all(127.0F), raw = all(1.0F) / d;
        stored = to_half(d);
        inverse = select(raw < all(__builtin_inff()), raw, all(0.0F));
    }
};

struct ToF16 {
    static constexpr std::int32_t overflow = f16_overflow;
    BITLOSS_INLINE static Floats cast(const Ints& size) { return as_f16(size); }
};
struct ToBF16 {
    static constexpr std::int32_t overflow = bf16_overflow;
    BITLOSS_INLINE static Floats cast(const Ints& size) { return as_bf16(size); }
};

template <class To>
BITLOSS_INLINE bool other_quants(const float* x, float before, float after) {
    for (std::size_t i = 0; i < group; i += lanes) {
        const Ints size = bits(load<Floats>(x + i)) & all(0x7fffffff);
        const Ints q = q8_0::round_away(from_bits(size) * all(before));
        if (any(q != q8_0::round_away(To::cast(size) * all(after)))) return true;
    }
    return false;
}

template <class To>
BITLOSS_INLINE void compare_blocks(const float* x, std::size_t count, const Ints& top, const Scales& plain,
                                   ThroughTally& into) {
    const Scales cast(To::cast(top));
    std::int32_t tops[lanes], same[lanes];
    float before[lanes], after[lanes];
    store(tops, top);
    store(same, as_ints(plain.stored == cast.stored));
    store(before, plain.inverse);
    store(after, cast.inverse);
    for (std::size_t b = 0; b < count; ++b) {
        if (tops[b] >= infinity) continue;
        const bool over = tops[b] >= To::overflow;
        into.overflowed += over;
        into.changed += over || same[b] == 0 || other_quants<To>(x + b * group, before[b], after[b]);
    }
}

// Compares n blocks that are blocks of the tally already.
template <bool F16Changes, bool BF16Changes>
BITLOSS_INLINE void compare_blocks(const float* x, std::size_t n, BlockTally& into) {
    for (std::size_t at = 0; at < n; at += lanes, x += lanes * group) {
        const std::size_t count = n - at < lanes ? n - at : lanes;
        const Ints top = top_bits(x, count);
        std::int32_t tops[lanes];
        store(tops, top);
        for (std::size_t b = 0; b < count; ++b) into.not_finite += tops[b] >= infinity;
        const Scales plain(from_bits(top));
        if constexpr (F16Changes) compare_blocks<ToF16>(x, count, top, plain, into.f16);
        if constexpr (BF16Changes) compare_blocks<ToBF16>(x, count, top, plain, into.bf16);
    }
}

// Calls look_at(first, end) for runs of blocks, of at most `most`, for which `odd(block)`.
template <class Odd, class LookAt>
BITLOSS_INLINE void runs(std::size_t n, std::size_t most, const Odd& odd, const LookAt& look_at) {
    for (std::size_t b = 0; b < n;) {
        const std::size_t first = b;
        while (b < n && b - first < most && odd(b)) ++b;
        if (b > first)
            look_at(first, b);
        else
            ++b;
    }
}

void blocks_of_floats(const float* x, std::size_t n, BlockTally& into) {
    into.blocks += n;
    const auto odd = [&](std::size_t b) {
        Mask some = all(0) != all(0);
        for (std::size_t i = 0; i < group; i += lanes) {
            const Ints size = bits(load<Floats>(x + b * group + i)) & all(0x7fffffff);
            some = some | ((size & all(bf16_lost)) != all(0)) | (all(rule_high) < size) |
                   ((size < all(f16_normal)) & (size != all(0)));
        }
        return any(some);
    };
    runs(n, n, odd, [&](std::size_t first, std::size_t end) {
        compare_blocks<true, true>(x + first * group, end - first, into);
    });
}

constexpr std::size_t most_blocks = 64;  // widened at once

template <class Format>
void blocks_of_words(const std::uint16_t* x, std::size_t n, BlockTally& into) {
    into.blocks += n;
    const auto odd = [&](std::size_t b) {
        Words some_are = {};
        const Words zero = {};
        for (std::size_t i = 0; i < group; i += words_of) {
            const Words size = load_plain<Words>(x + b * group + i) & every(0x7fff);
            some_are |= (size > every(Format::largest)) | ((size < every(Format::smallest)) & (size != zero));
            if constexpr (Format::changes) some_are |= (size & every(7)) != zero;
        }
        return some(some_are);
    };
    runs(n, most_blocks, odd, [&](std::size_t first, std::size_t end) {
        float wider[most_blocks * group];
        const std::uint8_t* from = reinterpret_cast<const std::uint8_t*>(x + first * group);
        for (std::size_t i = 0; i < (end - first) * group; i += lanes) {
            const Ints word = load_words(from + 2 * i);
            if constexpr (Format::changes)
                store(wider + i, from_half(word));
            else
                store(wider + i, word << 16);
        }
        compare_blocks<!Format::changes, Format::changes>(wider, end - first, into);
    });
}

}  // namespace audit
}  // namespace
}  // namespace bitloss
