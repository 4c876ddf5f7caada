#pragma once
// Q4_K and Q5_K: definition in src/bitloss/quantize/reference/k_quants.py. One super-block of 256 per lane.
#include "k_fit.hpp"

namespace bitloss {
namespace {
namespace k {

constexpr int q4_bytes = 144, q5_bytes = 176;

struct Affine32 {
    AffineFit fit[8];
    Ints scales[8], mins[8];  // 6 bits each
    Floats d, dmin;           // before they become F16
};

template <int nmax>
inline void fit_weighted(Group& group, Affine32& to) {
    weigh<2>(group);
    const Floats* w = group.weights;
    Floats sums[8], scales[8], mins[8];
    for (int j = 0; j < 8; j += side)
        fit_affine<32, nmax, false>(group.x + 32 * j, w + 32 * j, {-0.9F, 0.05F, 36}, to.fit + j);
    for (int j = 0; j < 8; ++j) {
        sums[j] = sum<32>(w + 32 * j);
        scales[j] = to.fit[j].scale;
        mins[j] = to.fit[j].min;
    }
    to.d = fit_positive<8, 63>(scales, sums, to.scales);
    to.dmin = fit_positive<8, 63>(mins, sums, to.mins);
    if constexpr (nmax == 31)  // libggml limits those of Q5_K only: a negative one is a byte above 63
        for (int j = 0; j < 8; ++j) {
            to.scales[j] = smaller(all(63), to.scales[j]);
            to.mins[j] = smaller(all(63), to.mins[j]);
        }
}

template <int nmax>
inline void fit_plain(Group& group, Affine32& to) {
    constexpr AffineSteps steps = nmax == 15 ? AffineSteps{-1.0F, 0.1F, 20} : AffineSteps{-0.5F, 0.1F, 15};
    const Floats zero = all(0.0F), most = all(63.0F);
    Floats* const w = group.weights;  // free, as there are none
    Floats top_scale = zero, top_min = zero;
    for (int j = 0; j < 8; ++j) {
        const Floats* x = group.x + 32 * j;
        Floats squares = zero;
        for (int i = 0; i < 32; ++i) squares = squares + x[i] * x[i];
        const Floats size = square_root(squares / all(32.0F));
        for (int i = 0; i < 32; ++i) w[32 * j + i] = size + absolute(x[i]);
    }
    for (int j = 0; j < 8; j += side)
        fit_affine<32, nmax, false>(group.x + 32 * j, w + 32 * j, steps, to.fit + j);
    for (int j = 0; j < 8; ++j) {
        top_scale = larger(to.fit[j].scale, top_scale);
        top_min = larger(to.fit[j].min, top_min);
    }
    const Floats to_scales = select(top_scale > zero, most / top_scale, zero);
    const Floats to_mins = select(top_min > zero, most / top_min, zero);
    for (int j = 0; j < 8; ++j) {
        to.scales[j] = smaller(all(63), nearest_int(to_scales * to.fit[j].scale) & all(255));
        to.mins[j] = smaller(all(63), nearest_int(to_mins * to.fit[j].min) & all(255));
    }
    to.d = top_scale / most;
    to.dmin = top_min / most;
}

// Puts d, dmin and the 12 bytes of scales and mins, and reads back what a decoder will see in them.
template <int bytes>
inline void put_scales(Affine32& from, Words<bytes>& words) {
    const Ints low = all(15);
    const Ints d = to_half(from.d), dmin = to_half(from.dmin);
    words.word[0] = d | (dmin << 16);
    for (int j = 0; j < 4; ++j) {
        const Ints first = (from.scales[j] | (from.scales[j + 4] >> 4 << 6)) & all(255);
        const Ints second = (from.mins[j] | (from.mins[j + 4] >> 4 << 6)) & all(255);
        const Ints third = (from.scales[j + 4] & low) | ((from.mins[j + 4] & low) << 4);
        words.put(4 + j, first);
        words.put(8 + j, second);
        words.put(12 + j, third);
        from.scales[j] = first & all(63);
        from.mins[j] = second & all(63);
        from.scales[j + 4] = (third & low) | (first >> 6 << 4);
        from.mins[j + 4] = (third >> 4) | (second >> 6 << 4);
    }
    from.d = from_half(d);
    from.dmin = from_half(dmin);
}

// The 32 quanta of sub-block j, for the scales as stored.
template <int nmax>
inline void quantize(const Group& group, const Affine32& with, int j, Ints* q) {
    const Floats* x = group.x + 32 * j;
    const Floats d = with.d * to_floats(with.scales[j]), dm = with.dmin * to_floats(with.mins[j]);
    for (int i = 0; i < 32; ++i) q[i] = clip(nearest_int((x[i] + dm) / d), 0, nmax);
    const Mask nothing = d == all(0.0F);
    if (any(nothing))
        for (int i = 0; i < 32; ++i) q[i] = select(nothing, with.fit[j].quantum(x[i], nmax), q[i]);
}

template <int nmax>
void encode_affine32(const EncodeJob& job, std::size_t first, std::size_t end) {
    constexpr int bytes = nmax == 15 ? q4_bytes : q5_bytes, low_at = bytes - 128;
    Group group;
    for (std::size_t at = first; at < end; at += lanes) {
        group.load(job, at, end);
        Affine32 found;
        if (job.weights != nullptr)
            fit_weighted<nmax>(group, found);
        else
            fit_plain<nmax>(group, found);
        Words<bytes> words;
        put_scales(found, words);
        for (int j = 0; j < 8; j += 2) {
            Ints a[32], b[32];
            quantize<nmax>(group, found, j, a);
            quantize<nmax>(group, found, j + 1, b);
            for (int i = 0; i < 32; ++i) {
                if (nmax == 31) {
                    words.put(16 + i, ((a[i] >> 4) | (b[i] >> 4 << 1)) << j);
                    a[i] = a[i] & all(15);
                    b[i] = b[i] & all(15);
                }
                a[i] = a[i] | (b[i] << 4);
            }
            for (int i = 0; i < 32; i += 4) words.put4(low_at + 16 * j + i, a[i], a[i + 1], a[i + 2], a[i + 3]);
        }
        words.store(job.out, at, end);
    }
}

}  // namespace k
}  // namespace
}  // namespace bitloss
