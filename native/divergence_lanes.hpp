#pragma once
// Vectors of floats and doubles for the divergence kernel. Included by one source file per instruction set, which defines
// BITLOSS_VECTOR_BYTES (16, 32 or 64) and is compiled with that set's flags.
//
// Everything here has internal linkage and no standard template is used: code compiled for AVX-512 must not be
// what the linker keeps for everybody.
#include <math.h>

#include <cstddef>
#include <cstdint>

#include "polynomials.hpp"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace bitloss {
namespace {

constexpr double ln2 = 0x1.62e42fefa39efp-1;

typedef float Floats __attribute__((vector_size(BITLOSS_VECTOR_BYTES)));
typedef double Doubles __attribute__((vector_size(BITLOSS_VECTOR_BYTES)));
typedef std::int32_t Ints __attribute__((vector_size(BITLOSS_VECTOR_BYTES)));
typedef std::uint32_t Unsigned __attribute__((vector_size(BITLOSS_VECTOR_BYTES)));
typedef std::int64_t Longs __attribute__((vector_size(BITLOSS_VECTOR_BYTES)));

constexpr std::size_t n_float = BITLOSS_VECTOR_BYTES / sizeof(float);
constexpr std::size_t n_double = BITLOSS_VECTOR_BYTES / sizeof(double);

template <class V>
struct Element;
template <>
struct Element<Floats> {
    using Type = float;
};
template <>
struct Element<Doubles> {
    using Type = double;
};

template <class V>
V load(const void* from) {
    V v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
}

template <class V>
V all(typename Element<V>::Type x) {
    return x - V{};
}

// Intrinsics: what the compiler makes of halves goes through memory, and keeps sums there.
#if BITLOSS_VECTOR_BYTES == 64
Doubles low_half(Floats x) { return _mm512_maskz_cvtps_pd(0xff, _mm512_maskz_extractf32x8_ps(0xff, x, 0)); }
Doubles high_half(Floats x) { return _mm512_maskz_cvtps_pd(0xff, _mm512_maskz_extractf32x8_ps(0xff, x, 1)); }
#elif BITLOSS_VECTOR_BYTES == 32
Doubles low_half(Floats x) { return _mm256_cvtps_pd(_mm256_castps256_ps128(x)); }
Doubles high_half(Floats x) { return _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)); }
#else
Doubles low_half(Floats x) { return Doubles{x[0], x[1]}; }
Doubles high_half(Floats x) { return Doubles{x[2], x[3]}; }
#endif

double sum(Doubles v) {
    double total = 0.0;
    for (std::size_t i = 0; i < n_double; ++i) total += v[i];
    return total;
}

void add_to(Doubles& total, Floats part) { total += low_half(part) + high_half(part); }

// --- masks -------------------------------------------------------------------------------------------------
// Intrinsics: of a comparison that is branched on the compiler would write a vector, and read it back; and of a
// ?: of floats it makes two instructions without -ffinite-math.

#if BITLOSS_VECTOR_BYTES == 64
using Mask = __mmask16;
Mask above(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
Mask at_most(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
unsigned bits(Mask m) { return m; }
Floats only(Mask m, Floats x) { return _mm512_maskz_mov_ps(m, x); }
Floats add_where(Mask m, Floats total, Floats x) { return _mm512_mask_add_ps(total, m, total, x); }
Floats add_product_where(Mask m, Floats total, Floats x, Floats y) { return _mm512_mask3_fmadd_ps(x, y, total, m); }
Floats product_where(Mask m, Floats x, Floats y) { return _mm512_maskz_mul_ps(m, x, y); }
Floats larger(Floats a, Floats b) { return _mm512_maskz_max_ps(0xffff, a, b); }
Doubles larger(Doubles a, Doubles b) { return _mm512_maskz_max_pd(0xff, a, b); }
bool every(Mask m) { return _kortestc_mask16_u8(m, m) != 0; }
// Stores the lanes of a mask one after the other (n_float may be written); returns how many.
std::size_t store_only(float* to, Mask m, Floats x) {
    const Floats packed = _mm512_maskz_compress_ps(m, x);
    __builtin_memcpy(to, &packed, sizeof packed);
    return static_cast<std::size_t>(__builtin_popcount(m));
}
#else
using Mask = Ints;
Mask above(Floats a, Floats b) { return a > b; }
Mask at_most(Floats a, Floats b) { return a <= b; }
Floats only(Mask m, Floats x) { return reinterpret_cast<Floats>(m & reinterpret_cast<Ints>(x)); }
Floats add_where(Mask m, Floats total, Floats x) { return total + only(m, x); }
Floats add_product_where(Mask m, Floats total, Floats x, Floats y) { return total + only(m, x) * y; }
Floats product_where(Mask m, Floats x, Floats y) { return only(m, x) * y; }
#if BITLOSS_VECTOR_BYTES == 32
unsigned bits(Mask m) { return static_cast<unsigned>(_mm256_movemask_ps(reinterpret_cast<__m256>(m))); }
Floats larger(Floats a, Floats b) { return _mm256_max_ps(a, b); }
Doubles larger(Doubles a, Doubles b) { return _mm256_max_pd(a, b); }
#elif defined(__SSE2__)
unsigned bits(Mask m) { return static_cast<unsigned>(_mm_movemask_ps(reinterpret_cast<__m128>(m))); }
Floats larger(Floats a, Floats b) { return _mm_max_ps(a, b); }
Doubles larger(Doubles a, Doubles b) { return _mm_max_pd(a, b); }
#else
unsigned bits(Mask m) {
    unsigned out = 0;
    for (std::size_t i = 0; i < n_float; ++i) out |= (m[i] != 0 ? 1U : 0U) << i;
    return out;
}
Floats larger(Floats a, Floats b) { return a > b ? a : b; }
Doubles larger(Doubles a, Doubles b) { return a > b ? a : b; }
#endif
bool every(Mask m) { return bits(m) == (1U << n_float) - 1; }
#if BITLOSS_VECTOR_BYTES == 32
// For every mask its lanes one after the other, a byte each.
struct Orders {
    std::uint64_t of[256]{};

    constexpr Orders() {
        for (unsigned m = 0; m < 256; ++m)
            for (unsigned i = 0, at = 0; i < 8; ++i)
                if ((m >> i & 1U) != 0) of[m] |= static_cast<std::uint64_t>(i) << 8 * at++;
    }
};
constexpr Orders orders;

std::size_t store_only(float* to, Mask m, Floats x) {
    const unsigned which = bits(m);
    const __m256i order = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(orders.of[which])));
    _mm256_storeu_ps(to, _mm256_permutevar8x32_ps(x, order));
    return static_cast<std::size_t>(__builtin_popcount(which));
}
#else
std::size_t store_only(float* to, Mask m, Floats x) {
    std::size_t count = 0;
    for (unsigned left = bits(m); left != 0; left &= left - 1) to[count++] = x[__builtin_ctz(left)];
    return count;
}
#endif
#endif

bool any_above(Floats a, Floats b) { return bits(above(a, b)) != 0; }
bool any_above(Doubles a, Doubles b) {
#if BITLOSS_VECTOR_BYTES == 64
    return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ) != 0;
#else
    return bits(reinterpret_cast<Ints>(a > b)) != 0;
#endif
}

// Products of powers of small numbers fall below the smallest normal number, where they cost a hundred cycles each
// and mean nothing: as long as one of these lives, such results are zero. (Logits may be as small: they are not.)
struct NoSubnormals {
#if defined(__SSE2__)
    unsigned before = _mm_getcsr();
    NoSubnormals() { _mm_setcsr(before | 0x8000U); }
    ~NoSubnormals() { _mm_setcsr(before); }
    NoSubnormals(const NoSubnormals&) = delete;
    NoSubnormals& operator=(const NoSubnormals&) = delete;
#endif
};

// --- polynomials and exponentials --------------------------------------------------------------------------

// Σ c[k] x^k, even and odd powers apart: half as long a chain of dependent steps as Horner's.
template <class V, std::size_t N>
__attribute__((always_inline)) inline V evaluate(const typename Element<V>::Type (&c)[N], V x) {
    constexpr std::size_t top_even = (N - 1) / 2 * 2, top_odd = N / 2 * 2 - 1;
    const V x2 = x * x;
    V even = all<V>(c[top_even]), odd = all<V>(c[top_odd]);
    for (std::size_t k = top_even; k >= 2; k -= 2) even = even * x2 + c[k - 2];
    for (std::size_t k = top_odd; k >= 3; k -= 2) odd = odd * x2 + c[k - 2];
    return odd * x + even;
}

// e^x for x <= 700; below -708 it stays near 1e-308. Exact at 0.
Doubles exp(Doubles x) {
    x = larger(all<Doubles>(-708.0), x);
    const Doubles shifted = x * (1.0 / ln2) + 0x1.8p52;  // n in the low bits
    const Doubles n = shifted - 0x1.8p52;
    const Doubles r = (x - n * 0x1.62e42fee00000p-1) - n * 0x1.a39ef35793c76p-33;
    const Doubles value = evaluate(polynomial::exp_tail_double, r) * (r * r) + r + 1;
    return reinterpret_cast<Doubles>(reinterpret_cast<Longs>(value) + (reinterpret_cast<Longs>(shifted) << 52));
}

#if BITLOSS_VECTOR_BYTES == 64
constexpr int step_bits = 4;
#elif BITLOSS_VECTOR_BYTES == 32
constexpr int step_bits = 3;
#else
constexpr int step_bits = 0;
#endif
constexpr int steps = 1 << step_bits;

// e^(x - at) `factor` as floats, where `factor`, near 1, makes a power of 2 of e^-at: with x = n ln 2 / steps + r, 2^(n/steps)
// is the sum, as integers, of n shifted to the exponent and what a table of n's lowest bits tells: the mantissa, less the
// bits that were shifted below the exponent, less that power.
struct Scale {
    alignas(64) std::uint32_t table[n_float];
    double at, factor;
    float lowest;   // smaller x are taken for it: e^-84
    float highest;  // no larger x may come: e^60

    explicit Scale(float at_) : at(static_cast<double>(at_)) {
        const int power = static_cast<int>(::floor(at / ln2 + 0.5));
        factor = ::exp(at - power * ln2);
        lowest = at_ - 84.0F;
        highest = at_ + 60.0F;
        for (int j = 0; j < static_cast<int>(n_float); ++j) {
            const float value = polynomial::powers[j % steps * (16 / steps)];
            std::uint32_t raw;
            __builtin_memcpy(&raw, &value, sizeof raw);
            table[j] = raw - (static_cast<std::uint32_t>(j % steps) << (23 - step_bits)) -
                       (static_cast<std::uint32_t>(power) << 23);
        }
    }
};

// Of a scale, held in registers.
struct Exponential {
    Unsigned table;
    Floats lowest;

    explicit Exponential(const Scale& of) : table(load<Unsigned>(of.table)), lowest(all<Floats>(of.lowest)) {}

    // x's error is that of one rounding of r, which is small; ln 2 is split so that n's product with its first part is
    // exact where there is no fused multiply-add.
    __attribute__((always_inline)) inline Floats operator()(Floats x) const {
        x = larger(lowest, x);  // NaN stays
        const Floats shifted = x * static_cast<float>(steps / ln2) + 0x1.8p23F;
        const Floats n = shifted - 0x1.8p23F;
        const Floats r = (x - n * (0x1.63p-1F / steps)) + n * (0x1.bd0106p-13F / steps);
        const Unsigned raw = reinterpret_cast<Unsigned>(shifted);
#if BITLOSS_VECTOR_BYTES == 64
        const Unsigned entry = reinterpret_cast<Unsigned>(
            _mm512_maskz_permutexvar_epi32(0xffff, reinterpret_cast<__m512i>(raw), reinterpret_cast<__m512i>(table)));
        const Floats value = ((r * polynomial::exp_16_float[2] + polynomial::exp_16_float[1]) * r + 1) * r + 1;
#elif BITLOSS_VECTOR_BYTES == 32
        const Unsigned entry = reinterpret_cast<Unsigned>(
            _mm256_permutevar8x32_epi32(reinterpret_cast<__m256i>(table), reinterpret_cast<__m256i>(raw)));
        const Floats value = evaluate(polynomial::exp_8_float, r) * r + 1;
#else
        const Unsigned entry = table;
        const Floats value = evaluate(polynomial::exp_1_float, r) * r + 1;
#endif
        return value * reinterpret_cast<Floats>(entry + (raw << (23 - step_bits)));
    }
};

}  // namespace
}  // namespace bitloss
