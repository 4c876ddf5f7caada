#pragma once
// Vectors of bytes and of words of 16 bits, for one instruction set. See lanes.hpp for how it is compiled.
#include "lanes.hpp"

namespace bitloss {
namespace {
namespace narrow {

constexpr int wide = BITLOSS_VECTOR_BYTES == 16 ? 16 : 32;  // two vectors of 32 bytes are as fast as one of 64

typedef std::int16_t Words __attribute__((vector_size(wide)));
typedef std::uint8_t Bytes __attribute__((vector_size(wide)));
constexpr std::size_t words_of = wide / 2;

template <class V>
BITLOSS_INLINE V load_plain(const void* from) {
    V v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
}

BITLOSS_INLINE Words every(int x) { return static_cast<std::int16_t>(x) - Words{}; }
BITLOSS_INLINE Bytes every_byte(unsigned x) { return static_cast<std::uint8_t>(x) - Bytes{}; }

// Whether a bit is set.
#if BITLOSS_VECTOR_BYTES > 16
BITLOSS_INLINE bool some(Words m) { return !_mm256_testz_si256((__m256i)m, (__m256i)m); }
BITLOSS_INLINE std::uint64_t marks(Bytes m) { return static_cast<std::uint32_t>(_mm256_movemask_epi8((__m256i)m)); }
// Packing works in halves of 16 bytes: byte i is of this word.
BITLOSS_INLINE std::size_t word_at(std::size_t i) { return (i & 39) | (i & 8) << 1 | (i & 16) >> 1; }
BITLOSS_INLINE Bytes low_bytes(Words a, Words b) { return (Bytes)_mm256_packus_epi16((__m256i)a, (__m256i)b); }
BITLOSS_INLINE std::uint64_t sum(Bytes x) {
    const __m256i sums = _mm256_sad_epu8((__m256i)x, _mm256_setzero_si256());
    const __m128i two = _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    return static_cast<std::uint64_t>(_mm_cvtsi128_si64(_mm_add_epi64(two, _mm_unpackhi_epi64(two, two))));
}
#elif defined(__SSE2__)
BITLOSS_INLINE bool some(Words m) {
    return _mm_movemask_epi8(_mm_cmpeq_epi8((__m128i)m, _mm_setzero_si128())) != 0xffff;
}
BITLOSS_INLINE std::uint64_t marks(Bytes m) { return static_cast<std::uint32_t>(_mm_movemask_epi8((__m128i)m)); }
BITLOSS_INLINE std::size_t word_at(std::size_t i) { return i; }
BITLOSS_INLINE Bytes low_bytes(Words a, Words b) { return (Bytes)_mm_packus_epi16((__m128i)a, (__m128i)b); }
BITLOSS_INLINE std::uint64_t sum(Bytes x) {
    const __m128i sums = _mm_sad_epu8((__m128i)x, _mm_setzero_si128());
    return static_cast<std::uint64_t>(_mm_cvtsi128_si64(_mm_add_epi64(sums, _mm_unpackhi_epi64(sums, sums))));
}
#else
BITLOSS_INLINE bool some(Words m) {
    std::uint64_t two[2];
    __builtin_memcpy(two, &m, sizeof two);
    return (two[0] | two[1]) != 0;
}
BITLOSS_INLINE std::uint64_t marks(Bytes m) {
    std::uint64_t out = 0;
    for (int i = 0; i < wide; ++i) out |= (m[i] != 0 ? 1ULL : 0ULL) << i;
    return out;
}
BITLOSS_INLINE std::size_t word_at(std::size_t i) { return i; }
BITLOSS_INLINE Bytes low_bytes(Words a, Words b) {
    Bytes out;
    for (int i = 0; i < wide / 2; ++i) {
        out[i] = static_cast<std::uint8_t>(a[i]);
        out[i + wide / 2] = static_cast<std::uint8_t>(b[i]);
    }
    return out;
}
BITLOSS_INLINE std::uint64_t sum(Bytes x) {
    std::uint64_t total = 0;
    for (int i = 0; i < wide; ++i) total += x[i];
    return total;
}
#endif

BITLOSS_INLINE std::uint64_t sum(Words x) {
    std::uint64_t total = 0;
    for (std::size_t i = 0; i < words_of; ++i) total += static_cast<std::uint16_t>(x[i]);
    return total;
}

}  // namespace narrow
}  // namespace
}  // namespace bitloss
