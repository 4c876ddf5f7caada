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

// Exchanges halves, quarters, ... of a square of lanes as machine::transpose does, but keeps of every two the larger:
// lane l of the first becomes the largest of all lanes of t[l].
template <int Step = machine::width / 2, class V, class Larger>
BITLOSS_INLINE void largest_of_each(V* t, const Larger& larger) {
    if constexpr (Step > 0) {
        machine::Ints low, high;
        for (int l = 0; l < machine::width; ++l) {
            low[l] = (l & Step) != 0 ? machine::width + (l ^ Step) : l;
            high[l] = (l & Step) != 0 ? machine::width + l : (l ^ Step);
        }
        for (int i = 0; i < Step; ++i) {
            const machine::Ints a = (machine::Ints)t[i], b = (machine::Ints)t[i | Step];
            t[i] = larger((V)__builtin_shuffle(a, b, low), (V)__builtin_shuffle(a, b, high));
        }
        largest_of_each<Step / 2>(t, larger);
    }
}

// The largest magnitude of each lane's block, as bits: NaN and infinity are larger than all numbers.
BITLOSS_INLINE Ints top_bits(const float* x, std::size_t count) {
    machine::Ints top[lanes];
    for (std::size_t b = 0; b < lanes; ++b) {
        const float* from = x + (b < count ? b : count - 1) * group;
        machine::Ints most = (machine::Ints)machine::load_floats(from) & 0x7fffffff;
        for (std::size_t i = machine::width; i < group; i += machine::width)
            most = machine::larger(most, (machine::Ints)machine::load_floats(from + i) & 0x7fffffff);
        top[b] = most;
    }
    Ints all_tops;
    for (int p = 0; p < parts; ++p) {
        largest_of_each(top + p * machine::width, [](machine::Ints a, machine::Ints b) { return machine::larger(a, b); });
        all_tops.part[p] = top[p * machine::width];
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

constexpr std::size_t most_blocks = 64;  // compared at once: 8 kB

// Compares those of n blocks of which odd(block) says that a cast may change them; put(block, to) writes its values.
template <bool F16Changes, bool BF16Changes, class Odd, class Put>
BITLOSS_INLINE void compare_odd(std::size_t n, const Odd& odd, const Put& put, BlockTally& into) {
    float values[most_blocks * group];
    std::size_t count = 0;
    into.blocks += n;
    for (std::size_t b = 0; b < n; ++b) {
        if (odd(b)) put(b, values + group * count++);
        if (count == most_blocks || b + 1 == n) {
            compare_blocks<F16Changes, BF16Changes>(values, count, into);
            count = 0;
        }
    }
}

void blocks_of_floats(const float* x, std::size_t n, BlockTally& into) {
    const auto odd = [&](std::size_t b) {
        Mask some = all(0) != all(0);
        for (std::size_t i = 0; i < group; i += lanes) {
            const Ints size = bits(load<Floats>(x + b * group + i)) & all(0x7fffffff);
            some = some | (all(0) < (size & all(bf16_lost))) | (all(rule_high) < size) |
                   ((size < all(f16_normal)) & (size != all(0)));
        }
        return any(some);
    };
    const auto put = [&](std::size_t b, float* to) {
        for (std::size_t i = 0; i < group; i += lanes) store(to + i, load<Floats>(x + b * group + i));
    };
    compare_odd<true, true>(n, odd, put, into);
}

template <class Format>
void blocks_of_words(const std::uint16_t* x, std::size_t n, BlockTally& into) {
    const auto odd = [&](std::size_t b) {
        Words some_are = {};
        const Words zero = {};
        for (std::size_t i = 0; i < group; i += words_of) {
            const Words size = load_plain<Words>(x + b * group + i) & every(0x7fff);
            some_are |= (size > every(Format::largest)) | ((size < every(Format::smallest)) & (size != zero));
            if constexpr (Format::changes) some_are |= (size & every(7)) > zero;
        }
        return some(some_are);
    };
    const auto put = [&](std::size_t b, float* to) {
        const std::uint8_t* from = reinterpret_cast<const std::uint8_t*>(x + b * group);
        for (std::size_t i = 0; i < group; i += lanes) {
            if constexpr (Format::changes)
                store(to + i, load_halves(from + 2 * i));
            else
                store(to + i, load_words(from + 2 * i) << 16);
        }
    };
    compare_odd<!Format::changes, Format::changes>(n, odd, put, into);
}

}  // namespace audit
}  // namespace
}  // namespace bitloss
