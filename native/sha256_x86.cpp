// SHA-256 by the SHA extensions of x86; flags in CMakeLists.txt.
#include "sha256.hpp"

#include <cpuid.h>
#include <immintrin.h>

#define BITLOSS_INLINE inline __attribute__((always_inline))

namespace bitloss {
namespace {

alignas(16) constexpr std::uint32_t constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

// A digest under way, as the instructions want it: A B E F and C D G H, the first in the highest lane.
struct Halves {
    __m128i abef, cdgh;

    BITLOSS_INLINE explicit Halves(const ShaState& state) {
        const __m128i dcba = _mm_loadu_si128(reinterpret_cast<const __m128i*>(state.h));
        const __m128i hgfe = _mm_loadu_si128(reinterpret_cast<const __m128i*>(state.h + 4));
        const __m128i badc = _mm_shuffle_epi32(dcba, 0xb1), efgh = _mm_shuffle_epi32(hgfe, 0x1b);
        abef = _mm_alignr_epi8(badc, efgh, 8);
        cdgh = _mm_blend_epi16(efgh, badc, 0xf0);
    }
    BITLOSS_INLINE void store(ShaState& state) const {
        const __m128i feba = _mm_shuffle_epi32(abef, 0x1b), dchg = _mm_shuffle_epi32(cdgh, 0xb1);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(state.h), _mm_blend_epi16(feba, dchg, 0xf0));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(state.h + 4), _mm_alignr_epi8(dchg, feba, 8));
    }
};

// One block of each of `count` digests.
template <int count>
BITLOSS_INLINE void block(Halves (&digest)[count], const std::uint8_t* const (&at)[count]) {
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    __m128i words[count][4], abef[count], cdgh[count];  // the last 16 words of each schedule
    for (int d = 0; d < count; ++d) {
        abef[d] = digest[d].abef;
        cdgh[d] = digest[d].cdgh;
    }
#pragma GCC unroll 16
    for (int four = 0; four < 16; ++four) {
        const __m128i k = _mm_load_si128(reinterpret_cast<const __m128i*>(constants + 4 * four));
#pragma GCC unroll 2
        for (int d = 0; d < count; ++d) {
            __m128i& w = words[d][four % 4];
            if (four < 4) {
                w = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at[d] + 16 * four)), big_endian);
            } else {
                const __m128i last = words[d][(four + 3) % 4];
                w = _mm_sha256msg1_epu32(w, words[d][(four + 1) % 4]);
                w = _mm_add_epi32(w, _mm_alignr_epi8(last, words[d][(four + 2) % 4], 4));
                w = _mm_sha256msg2_epu32(w, last);
            }
            const __m128i in = _mm_add_epi32(w, k);
            cdgh[d] = _mm_sha256rnds2_epu32(cdgh[d], abef[d], in);
            abef[d] = _mm_sha256rnds2_epu32(abef[d], cdgh[d], _mm_shuffle_epi32(in, 0x0e));
        }
    }
    for (int d = 0; d < count; ++d) {
        digest[d].abef = _mm_add_epi32(digest[d].abef, abef[d]);
        digest[d].cdgh = _mm_add_epi32(digest[d].cdgh, cdgh[d]);
    }
}

}  // namespace

bool sha_available() {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & (1U << 29))) return false;
    return __builtin_cpu_supports("sse4.1") && __builtin_cpu_supports("ssse3");
}

void sha_blocks(ShaState& state, const std::uint8_t* data, std::size_t blocks) {
    Halves digest[1] = {Halves(state)};
    for (; blocks > 0; --blocks, data += sha_block) block<1>(digest, {data});
    digest[0].store(state);
}

void sha_blocks_of_two(ShaState& a, const std::uint8_t* at_a, ShaState& b, const std::uint8_t* at_b,
                       std::size_t blocks) {
    Halves digest[2] = {Halves(a), Halves(b)};
    for (; blocks > 0; --blocks, at_a += sha_block, at_b += sha_block) block<2>(digest, {at_a, at_b});
    digest[0].store(a);
    digest[1].store(b);
}

}  // namespace bitloss
