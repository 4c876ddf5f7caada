#pragma once
// Floats and integers by the lane, for codecs that keep the scalar order of operations in every lane. Included by one
// source file per instruction set, which defines BITLOSS_VECTOR_BYTES (16, 32 or 64: the machine's vector) and
// BITLOSS_LANES (how many lanes a value here has: one machine vector or several side by side).
//
// Every operation is the IEEE single operation of the scalar code: no contraction, no reciprocals, comparisons false on
// NaN. Internal linkage throughout, no standard templates: code compiled for AVX-512 must not be what the linker keeps
// for everybody.
#include <cstddef>
#include <cstdint>

#if BITLOSS_VECTOR_BYTES == 64 || BITLOSS_VECTOR_BYTES == 32
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

#define BITLOSS_INLINE inline __attribute__((always_inline))

namespace bitloss {
namespace {

constexpr int lanes = BITLOSS_LANES;
constexpr int parts = lanes * 4 / BITLOSS_VECTOR_BYTES;

namespace machine {

typedef float Floats __attribute__((vector_size(BITLOSS_VECTOR_BYTES)));
typedef std::int32_t Ints __attribute__((vector_size(BITLOSS_VECTOR_BYTES)));

#if BITLOSS_VECTOR_BYTES == 64
typedef __mmask16 Mask;
BITLOSS_INLINE Mask less(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
BITLOSS_INLINE Mask less_equal(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
BITLOSS_INLINE Mask equal(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
BITLOSS_INLINE Mask less(Ints a, Ints b) { return _mm512_cmplt_epi32_mask((__m512i)a, (__m512i)b); }
BITLOSS_INLINE Mask equal(Ints a, Ints b) { return _mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b); }
BITLOSS_INLINE Mask invert(Mask m) { return static_cast<Mask>(~m); }
BITLOSS_INLINE Mask both(Mask a, Mask b) { return static_cast<Mask>(a & b); }
BITLOSS_INLINE Mask either(Mask a, Mask b) { return static_cast<Mask>(a | b); }
BITLOSS_INLINE Floats select(Mask m, Floats a, Floats b) { return _mm512_mask_blend_ps(m, b, a); }
BITLOSS_INLINE Ints select(Mask m, Ints a, Ints b) {
    return (Ints)_mm512_mask_blend_epi32(m, (__m512i)b, (__m512i)a);
}
BITLOSS_INLINE bool any(Mask m) { return m != 0; }
BITLOSS_INLINE bool every(Mask m) { return m == 0xffff; }
BITLOSS_INLINE Ints as_ints(Mask m) { return (Ints)_mm512_movm_epi32(m); }
BITLOSS_INLINE Ints add_one(Ints count, Mask m) {
    return (Ints)_mm512_mask_add_epi32((__m512i)count, m, (__m512i)count, _mm512_set1_epi32(1));
}
BITLOSS_INLINE Floats lookup(Floats table, Ints k) { return _mm512_maskz_permutexvar_ps(0xffff, (__m512i)k, table); }
BITLOSS_INLINE Floats root(Floats x) { return _mm512_maskz_sqrt_ps(0xffff, x); }
BITLOSS_INLINE Floats smaller(Floats a, Floats b) { return _mm512_maskz_min_ps(0xffff, a, b); }
BITLOSS_INLINE Floats larger(Floats a, Floats b) { return _mm512_maskz_max_ps(0xffff, a, b); }
BITLOSS_INLINE Ints smaller(Ints a, Ints b) { return (Ints)_mm512_maskz_min_epi32(0xffff, (__m512i)a, (__m512i)b); }
BITLOSS_INLINE Ints larger(Ints a, Ints b) { return (Ints)_mm512_maskz_max_epi32(0xffff, (__m512i)a, (__m512i)b); }
#else
typedef Ints Mask;  // 0 or -1 in each lane
BITLOSS_INLINE Mask less(Floats a, Floats b) { return a < b; }
BITLOSS_INLINE Mask less_equal(Floats a, Floats b) { return a <= b; }
BITLOSS_INLINE Mask equal(Floats a, Floats b) { return a == b; }
BITLOSS_INLINE Mask less(Ints a, Ints b) { return a < b; }
BITLOSS_INLINE Mask equal(Ints a, Ints b) { return a == b; }
BITLOSS_INLINE Mask invert(Mask m) { return ~m; }
BITLOSS_INLINE Mask both(Mask a, Mask b) { return a & b; }
BITLOSS_INLINE Mask either(Mask a, Mask b) { return a | b; }
BITLOSS_INLINE Ints as_ints(Mask m) { return m; }
BITLOSS_INLINE Ints add_one(Ints count, Mask m) { return count - m; }
#if BITLOSS_VECTOR_BYTES == 32
// Intrinsics: of ?: on vectors the compiler makes two or three instructions, as it has to be careful with NaN.
BITLOSS_INLINE Floats select(Mask m, Floats a, Floats b) { return _mm256_blendv_ps(b, a, (__m256)m); }
BITLOSS_INLINE Ints select(Mask m, Ints a, Ints b) {
    return (Ints)_mm256_blendv_epi8((__m256i)b, (__m256i)a, (__m256i)m);
}
BITLOSS_INLINE Floats lookup(Floats table, Ints k) { return _mm256_permutevar8x32_ps(table, (__m256i)k); }
BITLOSS_INLINE bool any(Mask m) { return _mm256_movemask_ps((__m256)m) != 0; }
BITLOSS_INLINE bool every(Mask m) { return _mm256_movemask_ps((__m256)m) == 0xff; }
BITLOSS_INLINE Floats root(Floats x) { return _mm256_sqrt_ps(x); }
BITLOSS_INLINE Floats smaller(Floats a, Floats b) { return _mm256_min_ps(a, b); }
BITLOSS_INLINE Floats larger(Floats a, Floats b) { return _mm256_max_ps(a, b); }
BITLOSS_INLINE Ints smaller(Ints a, Ints b) { return (Ints)_mm256_min_epi32((__m256i)a, (__m256i)b); }
BITLOSS_INLINE Ints larger(Ints a, Ints b) { return (Ints)_mm256_max_epi32((__m256i)a, (__m256i)b); }
#else
BITLOSS_INLINE Ints select(Mask m, Ints a, Ints b) { return (a & m) | (b & ~m); }
BITLOSS_INLINE Floats select(Mask m, Floats a, Floats b) { return (Floats)select(m, (Ints)a, (Ints)b); }
BITLOSS_INLINE bool any(Mask m) { return (m[0] | m[1] | m[2] | m[3]) != 0; }
BITLOSS_INLINE bool every(Mask m) { return (m[0] & m[1] & m[2] & m[3]) != 0; }
#ifdef __SSE2__
BITLOSS_INLINE Floats root(Floats x) { return _mm_sqrt_ps(x); }
BITLOSS_INLINE Floats smaller(Floats a, Floats b) { return _mm_min_ps(a, b); }
BITLOSS_INLINE Floats larger(Floats a, Floats b) { return _mm_max_ps(a, b); }
#else
BITLOSS_INLINE Floats root(Floats x) {
    for (int i = 0; i < 4; ++i) x[i] = __builtin_sqrtf(x[i]);
    return x;
}
BITLOSS_INLINE Floats smaller(Floats a, Floats b) { return select(a < b, a, b); }
BITLOSS_INLINE Floats larger(Floats a, Floats b) { return select(a > b, a, b); }
#endif
BITLOSS_INLINE Ints smaller(Ints a, Ints b) { return select(a < b, a, b); }
BITLOSS_INLINE Ints larger(Ints a, Ints b) { return select(a > b, a, b); }
#endif
#endif

// Bytes and words widened by intrinsics: __builtin_convertvector takes them apart one by one (GCC 12).
#if BITLOSS_VECTOR_BYTES == 64
BITLOSS_INLINE Ints load_bytes(const std::uint8_t* from) {
    return (Ints)_mm512_maskz_cvtepi8_epi32(0xffff, _mm_loadu_si128((const __m128i*)from));
}
BITLOSS_INLINE Ints load_unsigned(const std::uint8_t* from) {
    return (Ints)_mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128((const __m128i*)from));
}
BITLOSS_INLINE Ints load_words(const std::uint8_t* from) {
    return (Ints)_mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256((const __m256i*)from));
}
#elif BITLOSS_VECTOR_BYTES == 32
BITLOSS_INLINE Ints load_bytes(const std::uint8_t* from) {
    return (Ints)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from));
}
BITLOSS_INLINE Ints load_unsigned(const std::uint8_t* from) {
    return (Ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from));
}
BITLOSS_INLINE Ints load_words(const std::uint8_t* from) {
    return (Ints)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from));
}
#elif defined(__SSE2__)
// Interleaved with zeros below, then shifted down: the sign comes along, or not.
BITLOSS_INLINE __m128i top_bytes(const std::uint8_t* from) {
    std::int32_t four;
    __builtin_memcpy(&four, from, 4);
    const __m128i zero = _mm_setzero_si128();
    return _mm_unpacklo_epi16(zero, _mm_unpacklo_epi8(zero, _mm_cvtsi32_si128(four)));
}
BITLOSS_INLINE Ints load_bytes(const std::uint8_t* from) { return (Ints)_mm_srai_epi32(top_bytes(from), 24); }
BITLOSS_INLINE Ints load_unsigned(const std::uint8_t* from) { return (Ints)_mm_srli_epi32(top_bytes(from), 24); }
BITLOSS_INLINE Ints load_words(const std::uint8_t* from) {
    return (Ints)_mm_unpacklo_epi16(_mm_loadl_epi64((const __m128i*)from), _mm_setzero_si128());
}
#else
template <class Narrow>
BITLOSS_INLINE Ints widen(const std::uint8_t* from) {
    typedef Narrow Few __attribute__((vector_size(4 * sizeof(Narrow))));
    Few few;
    __builtin_memcpy(&few, from, sizeof few);
    return __builtin_convertvector(few, Ints);
}
BITLOSS_INLINE Ints load_bytes(const std::uint8_t* from) { return widen<std::int8_t>(from); }
BITLOSS_INLINE Ints load_unsigned(const std::uint8_t* from) { return widen<std::uint8_t>(from); }
BITLOSS_INLINE Ints load_words(const std::uint8_t* from) { return widen<std::uint16_t>(from); }
#endif

}  // namespace machine

// A value per lane; `Of` is one of the machine's vectors or masks.
template <class Of>
struct Lanes {
    Of part[parts];

    Lanes() = default;
    // Part by part: the copy GCC makes of a struct of two vectors goes through general registers.
    BITLOSS_INLINE Lanes(const Lanes& other) {
        for (int p = 0; p < parts; ++p) part[p] = other.part[p];
    }
    BITLOSS_INLINE Lanes& operator=(const Lanes& other) {
        for (int p = 0; p < parts; ++p) part[p] = other.part[p];
        return *this;
    }
};
using Floats = Lanes<machine::Floats>;
using Ints = Lanes<machine::Ints>;

// A type of its own, because on machines without mask registers its parts look like those of Ints.
struct Mask {
    machine::Mask part[parts];
};

// The same value in every lane.
BITLOSS_INLINE Floats all(float x) {
    Floats out;
    for (int p = 0; p < parts; ++p) out.part[p] = x - machine::Floats{};
    return out;
}
BITLOSS_INLINE Ints all(std::int32_t x) {
    Ints out;
    for (int p = 0; p < parts; ++p) out.part[p] = x - machine::Ints{};
    return out;
}

template <class V>
BITLOSS_INLINE V load(const void* from) {
    V v;
    // part by part: a copy of the whole goes through memory in halves, and every load of it waits for both
    const char* bytes = reinterpret_cast<const char*>(from);
    for (int p = 0; p < parts; ++p) __builtin_memcpy(&v.part[p], bytes + p * BITLOSS_VECTOR_BYTES, BITLOSS_VECTOR_BYTES);
    return v;
}
template <class Of>
BITLOSS_INLINE void store(void* to, const Lanes<Of>& v) {
    char* bytes = reinterpret_cast<char*>(to);
    for (int p = 0; p < parts; ++p) __builtin_memcpy(bytes + p * BITLOSS_VECTOR_BYTES, &v.part[p], BITLOSS_VECTOR_BYTES);
}

#define BITLOSS_BINARY(op)                                                         \
    template <class Of>                                                            \
    BITLOSS_INLINE Lanes<Of> operator op(const Lanes<Of>& a, const Lanes<Of>& b) { \
        Lanes<Of> out;                                                             \
        for (int p = 0; p < parts; ++p) out.part[p] = a.part[p] op b.part[p];      \
        return out;                                                                \
    }
BITLOSS_BINARY(+)
BITLOSS_BINARY(-)
BITLOSS_BINARY(*)
BITLOSS_BINARY(/)
BITLOSS_BINARY(&)
BITLOSS_BINARY(|)
#undef BITLOSS_BINARY

BITLOSS_INLINE Ints operator<<(const Ints& a, int by) {
    Ints out;
    for (int p = 0; p < parts; ++p) out.part[p] = a.part[p] << by;
    return out;
}
// Arithmetic: the sign comes in from the left.
BITLOSS_INLINE Ints operator>>(const Ints& a, int by) {
    Ints out;
    for (int p = 0; p < parts; ++p) out.part[p] = a.part[p] >> by;
    return out;
}

// C's unary minus: turns the sign, of zero and NaN as well.
BITLOSS_INLINE Floats operator-(const Floats& a) {
    Floats out;
    for (int p = 0; p < parts; ++p) out.part[p] = -a.part[p];
    return out;
}

#define BITLOSS_COMPARE(op, word)                                                            \
    template <class Of>                                                                      \
    BITLOSS_INLINE Mask operator op(const Lanes<Of>& a, const Lanes<Of>& b) {                \
        Mask out;                                                                            \
        for (int p = 0; p < parts; ++p) out.part[p] = machine::word(a.part[p], b.part[p]);   \
        return out;                                                                          \
    }
BITLOSS_COMPARE(<, less)
BITLOSS_COMPARE(<=, less_equal)
BITLOSS_COMPARE(==, equal)
#undef BITLOSS_COMPARE
template <class Of>
BITLOSS_INLINE Mask operator>(const Lanes<Of>& a, const Lanes<Of>& b) {
    return b < a;
}

BITLOSS_INLINE Mask operator!(const Mask& a) {
    Mask out;
    for (int p = 0; p < parts; ++p) out.part[p] = machine::invert(a.part[p]);
    return out;
}
BITLOSS_INLINE Mask operator&(const Mask& a, const Mask& b) {
    Mask out;
    for (int p = 0; p < parts; ++p) out.part[p] = machine::both(a.part[p], b.part[p]);
    return out;
}
BITLOSS_INLINE Mask operator|(const Mask& a, const Mask& b) {
    Mask out;
    for (int p = 0; p < parts; ++p) out.part[p] = machine::either(a.part[p], b.part[p]);
    return out;
}
// True on NaN, as C's != is.
template <class Of>
BITLOSS_INLINE Mask operator!=(const Lanes<Of>& a, const Lanes<Of>& b) {
    return !(a == b);
}

// Lane by lane: m ? a : b.
template <class Of>
BITLOSS_INLINE Lanes<Of> select(const Mask& m, const Lanes<Of>& a, const Lanes<Of>& b) {
    Lanes<Of> out;
    for (int p = 0; p < parts; ++p) out.part[p] = machine::select(m.part[p], a.part[p], b.part[p]);
    return out;
}

// -1 where set, else 0.
BITLOSS_INLINE Ints as_ints(const Mask& m) {
    Ints out;
    for (int p = 0; p < parts; ++p) out.part[p] = machine::as_ints(m.part[p]);
    return out;
}

// count + 1 where set.
BITLOSS_INLINE Ints add_one(const Ints& count, const Mask& m) {
    Ints out;
    for (int p = 0; p < parts; ++p) out.part[p] = machine::add_one(count.part[p], m.part[p]);
    return out;
}

#if BITLOSS_VECTOR_BYTES > 16
// table[k], k taken modulo the lanes of the machine's vector.
BITLOSS_INLINE Floats lookup(const machine::Floats& table, const Ints& k) {
    Floats out;
    for (int p = 0; p < parts; ++p) out.part[p] = machine::lookup(table, k.part[p]);
    return out;
}
#endif

BITLOSS_INLINE bool any(const Mask& m) {
    machine::Mask merged = m.part[0];
    for (int p = 1; p < parts; ++p) merged = machine::either(merged, m.part[p]);
    return machine::any(merged);
}

BITLOSS_INLINE bool every(const Mask& m) {
    machine::Mask merged = m.part[0];
    for (int p = 1; p < parts; ++p) merged = machine::both(merged, m.part[p]);
    return machine::every(merged);
}

// a < b ? a : b and a > b ? a : b: the second one where either is NaN or both are zero.
template <class Of>
BITLOSS_INLINE Lanes<Of> smaller(const Lanes<Of>& a, const Lanes<Of>& b) {
    Lanes<Of> out;
    for (int p = 0; p < parts; ++p) out.part[p] = machine::smaller(a.part[p], b.part[p]);
    return out;
}
template <class Of>
BITLOSS_INLINE Lanes<Of> larger(const Lanes<Of>& a, const Lanes<Of>& b) {
    Lanes<Of> out;
    for (int p = 0; p < parts; ++p) out.part[p] = machine::larger(a.part[p], b.part[p]);
    return out;
}

BITLOSS_INLINE Floats square_root(const Floats& x) {
    Floats out;
    for (int p = 0; p < parts; ++p) out.part[p] = machine::root(x.part[p]);
    return out;
}

BITLOSS_INLINE Ints bits(const Floats& x) {
    Ints out;
    for (int p = 0; p < parts; ++p) out.part[p] = (machine::Ints)x.part[p];
    return out;
}
BITLOSS_INLINE Floats from_bits(const Ints& x) {
    Floats out;
    for (int p = 0; p < parts; ++p) out.part[p] = (machine::Floats)x.part[p];
    return out;
}
BITLOSS_INLINE Floats to_floats(const Ints& x) {
    Floats out;
    for (int p = 0; p < parts; ++p) out.part[p] = __builtin_convertvector(x.part[p], machine::Floats);
    return out;
}

// Towards zero; beyond the integers and for NaN the smallest integer, on machines that do so.
BITLOSS_INLINE Ints to_ints(const Floats& x) {
    Ints out;
    for (int p = 0; p < parts; ++p) out.part[p] = __builtin_convertvector(x.part[p], machine::Ints);
    return out;
}

BITLOSS_INLINE Floats absolute(const Floats& x) { return from_bits(bits(x) & all(0x7fffffff)); }

// Rounds to the nearest integer, ties to even, as ggml does it: by adding 1.5 * 2^23 and reading the mantissa. Beyond
// ±2^22 and for NaN that gives other integers, and here the same ones.
constexpr float rounder = 12582912.0F;
BITLOSS_INLINE Ints nearest_int(const Floats& x) {
    return (bits(x + all(rounder)) & all(0x007fffff)) - all(0x00400000);
}

// Float32 -> F16 bits, ties to even; NaN becomes the sign and 0x7e00.
BITLOSS_INLINE Ints to_half(const Floats& x) {
    const Ints raw = bits(x), size = raw & all(0x7fffffff), sign = ((raw >> 16) & all(0x8000));
    // Adding 0.5 moves a subnormal's last bit to the end of the mantissa: the addition does the rounding.
    const Ints subnormal = bits(from_bits(size) + all(0.5F)) - all(0x3f000000);
    const Ints normal = (size - all(0x38000000) + all(0xfff) + ((size >> 13) & all(1))) >> 13;
    Ints half = select(size < all(0x38800000), subnormal, normal);
    half = select(all(0x477fefff) < size, all(0x7c00), half);  // from 65520 on: infinity
    half = select(all(0x7f800000) < size, all(0x7e00), half);
    return half | sign;
}

// F16 bits -> float32, exact; a signalling NaN comes out quiet.
BITLOSS_INLINE Floats from_half(const Ints& half) {
    const Ints size = half & all(0x7fff), sign = (half & all(0x8000)) << 16;
    const Ints normal = (size << 13) + all(0x38000000);
    const Ints subnormal = bits(to_floats(size) * all(0x1p-24F));
    Ints out = select(size < all(0x0400), subnormal, normal);
    out = select(all(0x7bff) < size, (size << 13) | all(0x7f800000), out);
    out = select(all(0x7c00) < size, out | all(0x00400000), out);
    return from_bits(out | sign);
}

// The largest of all lanes (no NaN).
BITLOSS_INLINE float largest(const Floats& x) {
    typedef float Quarter __attribute__((vector_size(16)));
    Quarter quarters[lanes / 4];
    __builtin_memcpy(quarters, x.part, sizeof x);
    Quarter top = quarters[0];
    for (int i = 1; i < lanes / 4; ++i) top = top > quarters[i] ? top : quarters[i];
    const Quarter pairs = __builtin_shufflevector(top, top, 2, 3, 0, 1);
    top = top > pairs ? top : pairs;
    return top[0] > top[1] ? top[0] : top[1];
}

// The low byte of every lane.
BITLOSS_INLINE void store_bytes(std::uint8_t* to, const Ints& x) {
    typedef std::uint8_t Bytes __attribute__((vector_size(BITLOSS_VECTOR_BYTES / 4)));
    for (int p = 0; p < parts; ++p) {
        const Bytes bytes = __builtin_convertvector(x.part[p] & 0xff, Bytes);
        __builtin_memcpy(to + p * (lanes / parts), &bytes, sizeof bytes);
    }
}

// Bytes (signed, unsigned) and little endian words of 16 bits, one for every lane.
BITLOSS_INLINE Ints load_bytes(const std::uint8_t* from) {
    Ints out;
    for (int p = 0; p < parts; ++p) out.part[p] = machine::load_bytes(from + p * (lanes / parts));
    return out;
}
BITLOSS_INLINE Ints load_unsigned(const std::uint8_t* from) {
    Ints out;
    for (int p = 0; p < parts; ++p) out.part[p] = machine::load_unsigned(from + p * (lanes / parts));
    return out;
}
BITLOSS_INLINE Ints load_words(const std::uint8_t* from) {
    Ints out;
    for (int p = 0; p < parts; ++p) out.part[p] = machine::load_words(from + p * (2 * lanes / parts));
    return out;
}

// F16, widened as by `from_half`.
BITLOSS_INLINE Floats load_halves(const std::uint8_t* from) {
#if BITLOSS_VECTOR_BYTES == 64 && BITLOSS_LANES == 16
    Floats out;
    out.part[0] = (machine::Floats)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i*)from));
    return out;
#else
    return from_half(load_words(from));
#endif
}

// Of lanes taken without a sign.
BITLOSS_INLINE std::uint64_t sum(const Ints& x) {
    std::int32_t each[lanes];
    store(each, x);
    std::uint64_t total = 0;
    for (int i = 0; i < lanes; ++i) total += static_cast<std::uint32_t>(each[i]);
    return total;
}

}  // namespace
}  // namespace bitloss
