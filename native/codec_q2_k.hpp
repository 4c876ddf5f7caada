#pragma once
// Q2_K: definition in src/bitloss/quantize/reference/k_quants.py. One super-block of 256 per lane.
#include "k_fit.hpp"

namespace bitloss {
namespace {
namespace k {

constexpr int q2_bytes = 84;

struct Affine16 {
    AffineFit fit[16];
    Ints scales[16];  // scale in the low 4 bits, minimum in the high 4
    Floats d, dmin;   // before they become F16
};

inline void fit_q2_weighted(Group& group, Affine16& to) {
    weigh<1>(group);
    const Floats* w = group.weights;
    Floats sums[16], scales[16], mins[16];
    Ints q_scales[16], q_mins[16];
    for (int j = 0; j < 16; j += side)
        fit_affine<16, 3, false>(group.x + 16 * j, w + 16 * j, {-0.9F, 0.05F, 36}, to.fit + j);
    for (int j = 0; j < 16; ++j) {
        sums[j] = sum<16>(w + 16 * j);
        scales[j] = to.fit[j].scale;
        mins[j] = to.fit[j].min;
    }
    to.d = fit_positive<16, 15>(scales, sums, q_scales);
    to.dmin = fit_positive<16, 15>(mins, sums, q_mins);
    for (int j = 0; j < 16; ++j) to.scales[j] = (q_scales[j] | (q_mins[j] << 4)) & all(255);
}

inline void fit_q2_plain(Group& group, Affine16& to) {
    const Floats zero = all(0.0F), most = all(15.0F);
    Floats top_scale = zero, top_min = zero;
    Floats* const w = group.weights;  // free, as there are none
    for (int i = 0; i < super; ++i) w[i] = absolute(group.x[i]);
    for (int j = 0; j < 16; j += side)
        fit_affine<16, 3, true>(group.x + 16 * j, w + 16 * j, {-0.5F, 0.1F, 15}, to.fit + j);
    for (int j = 0; j < 16; ++j) {
        top_scale = larger(to.fit[j].scale, top_scale);
        top_min = larger(to.fit[j].min, top_min);
    }
    const Mask has_scale = top_scale > zero, has_min = top_min > zero;
    const Floats to_scales = most / top_scale, to_mins = most / top_min;
    for (int j = 0; j < 16; ++j) {
        const Ints scale = select(has_scale, nearest_int(to_scales * to.fit[j].scale), all(0));
        const Ints min = select(has_min, nearest_int(to_mins * to.fit[j].min), all(0));
        to.scales[j] = (scale | (min << 4)) & all(255);
    }
    to.d = select(has_scale, top_scale / most, zero);
    to.dmin = select(has_min, top_min / most, zero);
}

void encode_q2_k(const EncodeJob& job, std::size_t first, std::size_t end) {
    Group group;
    Ints q[super];
    for (std::size_t at = first; at < end; at += lanes) {
        group.load(job, at, end);
        Affine16 found;
        if (job.weights != nullptr)
            fit_q2_weighted(group, found);
        else
            fit_q2_plain(group, found);
        const Ints half_d = to_half(found.d), half_dmin = to_half(found.dmin);
        const Floats all_d = from_half(half_d), all_dmin = from_half(half_dmin);
        for (int j = 0; j < 16; ++j) {
            const Floats* x = group.x + 16 * j;
            const Floats d = all_d * to_floats(found.scales[j] & all(15));
            const Floats dm = all_dmin * to_floats(found.scales[j] >> 4);
            for (int i = 0; i < 16; ++i) q[16 * j + i] = clip(nearest_int((x[i] + dm) / d), 0, 3);
            const Mask nothing = d == all(0.0F);
            if (any(nothing))
                for (int i = 0; i < 16; ++i)
                    q[16 * j + i] = select(nothing, found.fit[j].quantum(x[i], 3), q[16 * j + i]);
        }
        Words<q2_bytes> words;
        for (int j = 0; j < 16; j += 4)
            words.put4(j, found.scales[j], found.scales[j + 1], found.scales[j + 2], found.scales[j + 3]);
        put_two_bits(words, 16, q);
        words.word[20] = half_d | (half_dmin << 16);
        words.store(job.out, at, end);
    }
}

}  // namespace k
}  // namespace
}  // namespace bitloss
