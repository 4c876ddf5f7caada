#pragma once
// Q6_K: definition in src/bitloss/quantize/reference/k_quants.py. One super-block of 256 per lane.
#include "k_fit.hpp"

namespace bitloss {
namespace {
namespace k {

constexpr int q6_bytes = 210;

void encode_q6_k(const EncodeJob& job, std::size_t first, std::size_t end) {
    const Floats zero = all(0.0F);
    Group group;
    Ints q[super];
    for (std::size_t at = first; at < end; at += lanes) {
        group.load(job, at, end);
        SymmetricFit fit[16];
        Floats size = zero, top = zero;
        for (int j = 0; j < 16; ++j) {
            const Floats* x = group.x + 16 * j;
            Floats squares[16];
            for (int i = 0; i < 16; ++i) squares[i] = x[i] * x[i];
            fit[j] = fit_symmetric<16, 32, false>(x, job.weights != nullptr ? group.weights + 16 * j : squares);
            const Floats here = absolute(fit[j].scale);
            const Mask more = here > size;
            size = select(more, here, size);
            top = select(more, fit[j].scale, top);
        }
        const Mask empty = size < all(no_scale);
        const Floats factor = all(-128.0F) / top;
        const Ints half = select(empty, all(0), to_half(all(1.0F) / factor));
        const Floats all_d = from_half(half);
        Words<q6_bytes> words;
        for (int j = 0; j < 16; ++j) {
            // The low byte, with its sign: an int8 in ggml.
            const Ints scale = smaller(all(127), nearest_int(factor * fit[j].scale)) << 24 >> 24;
            words.put(192 + j, select(empty, all(0), scale & all(255)));
            const Floats d = all_d * to_floats(scale);
            for (int i = 16 * j; i < 16 * j + 16; ++i)
                q[i] = clip(nearest_int(group.x[i] / d), -32, 31) + all(32);
            const Mask nothing = d == zero;
            if (any(nothing))
                for (int i = 16 * j; i < 16 * j + 16; ++i)
                    q[i] = select(nothing, fit[j].quantum(group.x[i], 32), q[i]);
        }
        if (any(empty))
            for (int i = 0; i < super; ++i) q[i] = select(empty, all(0), q[i]);
        for (int half_at = 0; half_at < 2; ++half_at)
            for (int i = 0; i < 32; ++i) {
                const Ints* from = q + 128 * half_at + i;
                words.put(64 * half_at + i, (from[0] & all(15)) | ((from[64] & all(15)) << 4));
                words.put(64 * half_at + 32 + i, (from[32] & all(15)) | ((from[96] & all(15)) << 4));
                words.put(128 + 32 * half_at + i, ((from[0] >> 4) | (from[32] >> 4 << 2)) |
                                                      ((from[64] >> 4 << 4) | (from[96] >> 4 << 6)));
            }
        words.word[52] = half;
        words.store(job.out, at, end);
    }
}

}  // namespace k
}  // namespace
}  // namespace bitloss
