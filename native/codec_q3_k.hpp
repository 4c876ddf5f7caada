#pragma once
// Q3_K: definition in src/bitloss/quantize/reference/k_quants.py. One super-block of 256 per lane.
#include "k_fit.hpp"

namespace bitloss {
namespace {
namespace k {

constexpr int q3_bytes = 110;

struct Symmetric16 {
    Ints scales[16];  // 6 bits each, 32 for a scale of zero
    Floats d;         // before it becomes F16
};

// The quanta in q are those of the search; `q3_requantize` makes better ones of most.
inline void fit_q3_weighted(Group& group, Symmetric16& to, Ints* q) {
    weigh<2>(group);
    const Floats* w = group.weights;
    Floats sums[16], scales[16];
    for (int j = 0; j < 16; ++j) {
        sums[j] = sum<16>(w + 16 * j);
        const SymmetricFit fit = fit_symmetric<16, 4, false>(group.x + 16 * j, w + 16 * j);
        scales[j] = fit.scale;
        for (int i = 0; i < 16; ++i) q[16 * j + i] = fit.quantum(group.x[16 * j + i], 4);
    }
    const SymmetricFit of_scales = fit_symmetric<16, 32, true>(scales, sums);
    to.d = of_scales.scale;
    for (int j = 0; j < 16; ++j) to.scales[j] = of_scales.quantum(scales[j], 32);
}

inline void fit_q3_plain(const Group& group, Symmetric16& to, Ints* q) {
    const Floats zero = all(0.0F);
    Floats scales[16], size = zero, top = zero;
    for (int j = 0; j < 16; ++j) {
        scales[j] = fit_by_turns<16, 4>(group.x + 16 * j, q + 16 * j);
        const Floats here = absolute(scales[j]);
        const Mask more = here > size;
        size = select(more, here, size);
        top = select(more, scales[j], top);
    }
    const Mask has_scale = top != zero;
    const Floats factor = all(-32.0F) / top;
    to.d = select(has_scale, all(1.0F) / factor, zero);
    for (int j = 0; j < 16; ++j) {
        const Ints low_byte = nearest_int(factor * scales[j]) << 24 >> 24;  // kept in an int8 by ggml
        to.scales[j] = select(has_scale, clip(low_byte, -32, 31) + all(32), all(0));
    }
}

void encode_q3_k(const EncodeJob& job, std::size_t first, std::size_t end) {
    Group group;
    Ints q[super];
    for (std::size_t at = first; at < end; at += lanes) {
        group.load(job, at, end);
        Symmetric16 found;
        if (job.weights != nullptr)
            fit_q3_weighted(group, found, q);
        else
            fit_q3_plain(group, found, q);
        const Ints half = to_half(found.d);
        const Floats all_d = from_half(half);
        for (int j = 0; j < 16; ++j) {
            const Floats d = all_d * to_floats(found.scales[j] - all(32));
            const Mask nothing = d == all(0.0F);
            for (int i = 16 * j; i < 16 * j + 16; ++i)
                q[i] = select(nothing, q[i], clip(nearest_int(group.x[i] / d), -4, 3) + all(4));
        }
        Words<q3_bytes> words;
        for (int i = 0; i < 32; ++i) {
            Ints high = all(0);
            for (int bit = 0; bit < 8; ++bit) high = high | ((q[32 * bit + i] >> 2) << bit);
            words.put(i, high);
        }
        put_two_bits(words, 32, q);
        for (int j = 0; j < 8; ++j)
            words.put(96 + j, (found.scales[j] & all(15)) | ((found.scales[j + 8] & all(15)) << 4));
        for (int j = 0; j < 16; ++j) words.put(104 + j % 4, found.scales[j] >> 4 << (2 * (j / 4)));
        words.word[27] = half;
        words.store(job.out, at, end);
    }
}

}  // namespace k
}  // namespace
}  // namespace bitloss
