// One row of divergence/metrics.py, vectorised. Included by one source file per instruction set, which defines
// BITLOSS_VECTOR_BYTES (16, 32 or 64) and is compiled with that set's flags.
//
// Three passes, each over logits that the pass before left in cache:
//   scan    the two maxima, and whether the row is one for row_scalar;
//   sums    in float: L ≈ ln(Σ e^c / Σ e^b), and the ten largest entries of both;
//   terms   the sums of divergence/metrics.py, at t = c - b - L.
// L need not be exact, because its error is known afterwards: with w = e^(b - max b) and
// δ = ln(Σ w e^t / Σ w), the true t is t - δ, and (φ(t) = e^t - 1 - t, Σ p e^(t-δ) = 1)
//   KLD = Σ p φ(t) - φ(δ),   reverse = Σ q φ(-t) - φ(-δ),   JS ≈ Σ p f(t)·(1 - δ/2) - δ²/8,
// the last to first order in δ ~ 1e-8, with KL(p ‖ m) taken as JS.
// Equal rows have L = 0 and t = 0 exactly, so every divergence is exactly 0.
//
// Precision: entries of which either probability is above e^-head are taken in double, the others in float, whose
// terms are each good to a few 1e-7, with errors of both signs. Sums are kept in double.
//
// Everything here has internal linkage and no standard template is used: code compiled for AVX-512 must not be
// what the linker keeps for everybody.
#include <math.h>

#include "divergence.hpp"
#include "polynomials.hpp"

#if BITLOSS_VECTOR_BYTES == 64 || BITLOSS_VECTOR_BYTES == 32
#include <immintrin.h>
#endif

namespace bitloss {
namespace {

constexpr double ln2 = 0x1.62e42fefa39efp-1;
constexpr float head = 10.0F;
constexpr float largest = 1e4F;  // beyond, differences of floats lose too much and exponents run out

typedef float Floats __attribute__((vector_size(BITLOSS_VECTOR_BYTES)));
typedef double Doubles __attribute__((vector_size(BITLOSS_VECTOR_BYTES)));
typedef std::int32_t Ints __attribute__((vector_size(BITLOSS_VECTOR_BYTES)));
typedef std::int64_t Longs __attribute__((vector_size(BITLOSS_VECTOR_BYTES)));
typedef float HalfFloats __attribute__((vector_size(BITLOSS_VECTOR_BYTES / 2)));

constexpr std::size_t n_float = BITLOSS_VECTOR_BYTES / sizeof(float);
constexpr std::size_t n_double = BITLOSS_VECTOR_BYTES / sizeof(double);

// What the algorithm needs to know of a precision.
template <class V>
struct Precision;

template <>
struct Precision<Floats> {
    using Scalar = float;
    using Integers = Ints;
    static constexpr float round = 0x1.8p23F, lowest = -87.0F, ln2_high = 0x1.62e4p-1F, ln2_low = 0x1.7f7d1cp-20F;
    static constexpr int mantissa = 23;
    static constexpr auto& exp_tail = polynomial::exp_tail_float;
    static constexpr auto& phi = polynomial::phi_float;
    static constexpr auto& js = polynomial::js_float;
    static constexpr auto& log1p = polynomial::log1p_float;
};

template <>
struct Precision<Doubles> {
    using Scalar = double;
    using Integers = Longs;
    static constexpr double round = 0x1.8p52, lowest = -708.0, ln2_high = 0x1.62e42fee00000p-1,
                            ln2_low = 0x1.a39ef35793c76p-33;
    static constexpr int mantissa = 52;
    static constexpr auto& exp_tail = polynomial::exp_tail_double;
    static constexpr auto& phi = polynomial::phi_double;
    static constexpr auto& js = polynomial::js_double;
    static constexpr auto& log1p = polynomial::log1p_double;
};

template <class V>
V load(const void* from) {
    V v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
}

template <class V>
V all(typename Precision<V>::Scalar x) {
    return x - V{};
}

// Whether any lane of a comparison's result is set.
bool any(Ints mask) {
#if BITLOSS_VECTOR_BYTES == 64
    return _mm512_test_epi32_mask(reinterpret_cast<__m512i>(mask), reinterpret_cast<__m512i>(mask)) != 0;
#elif BITLOSS_VECTOR_BYTES == 32
    return _mm256_movemask_epi8(reinterpret_cast<__m256i>(mask)) != 0;
#else
    return (mask[0] | mask[1] | mask[2] | mask[3]) != 0;
#endif
}

// Whether any lane of `a` is above that of `b`, or any of `c` above `d` (intrinsics: the compiler would write each
// comparison to a vector, and read it back).
bool any_above(Floats a, Floats b) {
#if BITLOSS_VECTOR_BYTES == 64
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0;
#elif BITLOSS_VECTOR_BYTES == 32
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0;
#else
    return any(a > b);
#endif
}
bool any_above(Doubles a, Doubles b) {
#if BITLOSS_VECTOR_BYTES == 64
    return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ) != 0;
#elif BITLOSS_VECTOR_BYTES == 32
    return _mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_GT_OQ)) != 0;
#else
    return any(reinterpret_cast<Ints>(a > b));
#endif
}
bool any_above(Floats a, Floats b, Floats c, Floats d) {
#if BITLOSS_VECTOR_BYTES == 64
    return _kortestz_mask16_u8(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), _mm512_cmp_ps_mask(c, d, _CMP_GT_OQ)) == 0;
#elif BITLOSS_VECTOR_BYTES == 32
    return _mm256_movemask_ps(_mm256_or_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ), _mm256_cmp_ps(c, d, _CMP_GT_OQ))) != 0;
#else
    return any((a > b) | (c > d));
#endif
}

// The larger of each lane (intrinsics: without -ffinite-math the compiler makes two instructions of a ?:).
Floats larger(Floats a, Floats b) {
#if BITLOSS_VECTOR_BYTES == 64
    return _mm512_maskz_max_ps(0xffff, a, b);
#elif BITLOSS_VECTOR_BYTES == 32
    return _mm256_max_ps(a, b);
#else
    return a > b ? a : b;
#endif
}
Doubles larger(Doubles a, Doubles b) {
#if BITLOSS_VECTOR_BYTES == 64
    return _mm512_maskz_max_pd(0xff, a, b);
#elif BITLOSS_VECTOR_BYTES == 32
    return _mm256_max_pd(a, b);
#else
    return a > b ? a : b;
#endif
}

Doubles low_half(Floats x) {
    return __builtin_convertvector(load<HalfFloats>(&x), Doubles);
}
Doubles high_half(Floats x) {
    return __builtin_convertvector(load<HalfFloats>(reinterpret_cast<const char*>(&x) + sizeof(HalfFloats)), Doubles);
}

template <class V>
double sum(V v) {
    double total = 0.0;
    for (std::size_t i = 0; i < sizeof(V) / sizeof(v[0]); ++i) total += static_cast<double>(v[i]);
    return total;
}

// Σ c[k] x^k, even and odd powers apart: half as long a chain of dependent steps as Horner's.
template <class V, std::size_t N>
__attribute__((always_inline)) inline V evaluate(const typename Precision<V>::Scalar (&c)[N], V x) {
    constexpr std::size_t top_even = (N - 1) / 2 * 2, top_odd = N / 2 * 2 - 1;
    const V x2 = x * x;
    V even = all<V>(c[top_even]), odd = all<V>(c[top_odd]);
    for (std::size_t k = top_even; k >= 2; k -= 2) even = even * x2 + c[k - 2];
    for (std::size_t k = top_odd; k >= 3; k -= 2) odd = odd * x2 + c[k - 2];
    return odd * x + even;
}

// value·2^n by adding n to the exponent; `shifted` holds n in its low bits and zeros where the exponent goes.
template <class V>
V times_power(V value, V shifted) {
    using I = typename Precision<V>::Integers;
    return reinterpret_cast<V>(reinterpret_cast<I>(value) + (reinterpret_cast<I>(shifted) << Precision<V>::mantissa));
}

// e^(x - top) for x - top ≤ 30; below Precision::lowest it stays near that value (1e-38, 1e-308). Exact at 0.
// In float, x - top would lose the low bits of x: n·ln2_high + top is exact, and so is its difference from x.
template <class V>
V exp(V x, V top = V{}) {
    using P = Precision<V>;
    x = larger(x, top + P::lowest);
    const V shifted = (x - top) * static_cast<typename P::Scalar>(1.0 / ln2) + P::round;  // n in the low bits
    const V n = shifted - P::round;
    const V r = (x - (n * P::ln2_high + top)) - n * P::ln2_low;
    const V value = evaluate(P::exp_tail, r) * (r * r) + r + 1;
    return times_power(value, shifted);
}

double phi(double t) {
    if (t < -1.0 || t > 1.0) return ::expm1(t) - t;
    double value = 0.0;
    for (std::size_t k = sizeof polynomial::phi_double / sizeof(double); k-- > 0;)
        value = value * t + polynomial::phi_double[k];
    return value * t * t;
}

// Sums over entries, with v = w e^t:  Σw, Σ(v - w), Σw·ln w, Σv·ln v, Σw·φ(t), Σv·φ(-t), Σw·f(t).
template <class V>
struct Sums {
    V w{}, excess{}, w_ln_w{}, v_ln_v{}, kld{}, reverse{}, js{};
};

// Adds one vector of entries to the sums of the base alone.
template <class V>
__attribute__((always_inline)) inline void add_base(Sums<V>& sums, V b, V b_max) {
    const V w = exp(b, b_max);
    sums.w += w;
    sums.w_ln_w += w * (b - b_max);
}

// The candidate's side of a vector of floats: v = exp(c - max) * ratio. Taken from c, since x + t loses the digits of a c
// near its maximum where b lies far below; doubles have digits to lose.
struct Side {
    Floats c, max, ratio;
};

// Adds one vector of entries: b, its maximum, and t = c - b - L; with `base`, to the sums of the base alone as well.
template <class V, bool base>
__attribute__((always_inline)) inline void add(Sums<V>& sums, V b, V b_max, V t, const Side& side) {
    using P = Precision<V>;
    const V t2 = t * t;
    const V x = b - b_max;
    const V w = exp(b, b_max);
    const V phi = evaluate(P::phi, t) * t2;
    const V js = evaluate(P::js, t) * t2;
    const V step = t + phi;                       // e^t - 1
    const V reverse = t2 + (t * phi - phi);       // e^t φ(-t)
    if constexpr (base) {
        sums.w += w;
        sums.w_ln_w += w * x;
    }
    if (!any_above(t2, all<V>(1))) [[likely]] {
        sums.excess += w * step;
        sums.v_ln_v += (w + w * step) * (x + t);
        sums.kld += w * phi;
        sums.reverse += w * reverse;
        sums.js += w * js;
        return;
    }
    const auto far = t2 > 1;
    // Lanes with |t| > 1: closed forms in w and v = w e^t, whose terms no longer cancel.
    const V a = exp(t > 0 ? -t : t);
    const V above = t > 0 ? t : V{}, rest = a * evaluate(P::log1p, a);  // ln(1 + e^t) = above + rest
    V v_far;
    if constexpr (sizeof(typename P::Scalar) == sizeof(float))
        v_far = exp(side.c, side.max) * side.ratio;
    else
        v_far = exp(x + t);
    const V v = far ? v_far : w + w * step;
    sums.excess += far ? v - w : w * step;
    sums.v_ln_v += v * (x + t);
    sums.kld += far ? v - w - w * t : w * phi;
    sums.reverse += far ? w - v + v * t : w * reverse;
    // v t - (w + v) (ln(1 + e^t) - ln 2), with v·above taken out of both
    sums.js += far ? (v * (t - above) - w * above - (w + v) * (rest - static_cast<typename P::Scalar>(ln2))) / 2 : w * js;
}

void flush(Sums<Doubles>& into, Sums<Floats>& from) {
    const auto move = [](Doubles& to, Floats part) { to += low_half(part) + high_half(part); };
    move(into.w, from.w);
    move(into.excess, from.excess);
    move(into.w_ln_w, from.w_ln_w);
    move(into.v_ln_v, from.v_ln_v);
    move(into.kld, from.kld);
    move(into.reverse, from.reverse);
    move(into.js, from.js);
    from = {};
}

// Calls use(data, first, vectors) for blocks of at most 16 vectors; what is left over comes as one vector, filled up
// with `fill`. `data` holds two arrays of logits, `first` is the index of their first entry in the row.
struct Block {
    const float *base, *cand;
    std::size_t first, vectors;
};

template <class Use>
void for_blocks(const float* base, const float* cand, std::size_t n, float base_fill, float cand_fill, const Use& use) {
    const std::size_t whole = n / n_float;
    for (std::size_t k = 0; k < whole; k += 16)
        use(Block{base + k * n_float, cand + k * n_float, k * n_float, whole - k < 16 ? whole - k : 16});
    if (whole * n_float == n) return;
    float last_base[n_float], last_cand[n_float];
    for (std::size_t i = 0; i < n_float; ++i) {
        const std::size_t at = whole * n_float + i;
        last_base[i] = at < n ? base[at] : base_fill;
        last_cand[i] = at < n ? cand[at] : cand_fill;
    }
    use(Block{last_base, last_cand, whole * n_float, 1});
}

struct Scan {
    float top;
    float tenth;  // at most the tenth largest entry
};

// Maxima of lanes that have each seen other entries, so that ten of them are ten entries.
struct Lanes {
    Floats top[4];

    Scan finish(std::size_t n) const {
        float best[10];
        for (float& b : best) b = -HUGE_VALF;
        for (const Floats& t : top)
            for (std::size_t k = 0; k < n_float; ++k) {
                float v = t[k];
                for (float& b : best)
                    if (v > b) {
                        const float lower = b;
                        b = v;
                        v = lower;
                    }
            }
        return {best[0], best[n < 10 ? n - 1 : 9]};
    }
};

// False when a row is not for this kernel: an entry is not finite, or beyond `largest`.
bool scan(const float* base, const float* cand, std::size_t n, Scan& base_scan, Scan& cand_scan) {
    Lanes b, c;
    for (std::size_t k = 0; k < 4; ++k) b.top[k] = c.top[k] = all<Floats>(-HUGE_VALF);
    Ints size{};
    // An entry filled in has the lowest value that is still allowed; -inf would look like an entry that is not.
    for_blocks(base, cand, n, -largest, -largest, [&](const Block& block) {
        for (std::size_t k = 0; k < block.vectors; ++k) {
            const Floats x = load<Floats>(block.base + k * n_float), y = load<Floats>(block.cand + k * n_float);
            b.top[k % 4] = larger(x, b.top[k % 4]);
            c.top[k % 4] = larger(y, c.top[k % 4]);
            const Ints x_bits = reinterpret_cast<Ints>(x) & 0x7fffffff, y_bits = reinterpret_cast<Ints>(y) & 0x7fffffff;
            const Ints bits = x_bits > y_bits ? x_bits : y_bits;
            size = bits > size ? bits : size;
        }
    });
    base_scan = b.finish(n);
    cand_scan = c.finish(n);
    std::int32_t limit;
    __builtin_memcpy(&limit, &largest, sizeof limit);
    return !any(size > limit);
}

// The ten largest entries in order, the lower index first among equals.
struct Top {
    float value[10];
    std::size_t index[10];
    std::size_t filled = 0;

    void offer(float v, std::size_t i) {
        if (filled == 10 && !(v > value[9])) return;
        std::size_t at = filled < 10 ? filled++ : 9;
        for (; at > 0 && v > value[at - 1]; --at) {
            value[at] = value[at - 1];
            index[at] = index[at - 1];
        }
        value[at] = v;
        index[at] = i;
    }
};

float overlap(const Top& a, const Top& b, std::size_t k) {
    if (k > a.filled) k = a.filled;
    std::size_t shared = 0;
    for (std::size_t i = 0; i < k; ++i)
        for (std::size_t j = 0; j < k; ++j) shared += a.index[i] == b.index[j];
    return static_cast<float>(static_cast<double>(shared) / static_cast<double>(k));
}

// One vector of entries in double.
template <bool base>
__attribute__((noinline)) void add_head(Sums<Doubles>& sums, Floats b, Floats c, double b_max, double shift) {
    const Doubles b_low = low_half(b), b_high = high_half(b);
    add<Doubles, base>(sums, b_low, all<Doubles>(b_max), (low_half(c) - b_low) - shift, Side{});
    add<Doubles, base>(sums, b_high, all<Doubles>(b_max), (high_half(c) - b_high) - shift, Side{});
}

RowMetrics row_vector(const float* base, const float* cand, std::size_t n, std::size_t target) {
    Scan b_scan, c_scan;
    if (!scan(base, cand, n, b_scan, c_scan)) return row_scalar(base, cand, n, target);
    const float b_max = b_scan.top, c_max = c_scan.top;
    const float b_fill = b_max - 3 * largest, c_fill = c_max - 3 * largest;

    const float b_tenth = ::nextafterf(b_scan.tenth, -HUGE_VALF), c_tenth = ::nextafterf(c_scan.tenth, -HUGE_VALF);
    Top b_top, c_top;
    Doubles b_sum{}, c_sum{};
    for_blocks(base, cand, n, b_fill, c_fill, [&](const Block& block) {
        Floats b_part{}, c_part{};
        for (std::size_t k = 0; k < block.vectors; ++k) {
            const Floats b = load<Floats>(block.base + k * n_float), c = load<Floats>(block.cand + k * n_float);
            b_part += exp(b, all<Floats>(b_max));
            c_part += exp(c, all<Floats>(c_max));
            if (any_above(b, all<Floats>(b_tenth), c, all<Floats>(c_tenth))) [[unlikely]]
                for (std::size_t i = 0, at = block.first + k * n_float; i < n_float && at < n; ++i, ++at) {
                    b_top.offer(b[i], at);
                    c_top.offer(c[i], at);
                }
        }
        b_sum += low_half(b_part) + high_half(b_part);
        c_sum += low_half(c_part) + high_half(c_part);
    });
    const double b_log = ::log(sum(b_sum)), c_log = ::log(sum(c_sum));
    const double shift = (static_cast<double>(c_max) - b_max) + (c_log - b_log);
    const float ratio = static_cast<float>(::exp(b_log - c_log));
    const float shift_high = static_cast<float>(shift), shift_low = static_cast<float>(shift - shift_high);
    const float b_head = b_max + static_cast<float>(b_log) - head, c_head = c_max + static_cast<float>(c_log) - head;

    Sums<Doubles> sums;
    for_blocks(base, cand, n, b_fill, c_fill, [&](const Block& block) {
        Sums<Floats> part;
        // The sums of the base alone take no notice of the candidate, so that a base's figures are the same, bit for
        // bit, beside every candidate.
        unsigned heads = 0, base_heads = 0;
        for (std::size_t k = 0; k < block.vectors; ++k) {
            const Floats b = load<Floats>(block.base + k * n_float), c = load<Floats>(block.cand + k * n_float);
            if (!any_above(b, all<Floats>(b_head), c, all<Floats>(c_head))) [[likely]] {
                add<Floats, true>(part, b, all<Floats>(b_max), ((c - b) - shift_high) - shift_low,
                                  {c, all<Floats>(c_max), all<Floats>(ratio)});
                continue;
            }
            heads |= 1U << k;
            if (any_above(b, all<Floats>(b_head)))
                base_heads |= 1U << k;
            else
                add_base(part, b, all<Floats>(b_max));
        }
        flush(sums, part);
        for (std::size_t k = 0; heads >> k; ++k) {
            if (!(heads >> k & 1U)) continue;
            const Floats b = load<Floats>(block.base + k * n_float), c = load<Floats>(block.cand + k * n_float);
            if (base_heads >> k & 1U)
                add_head<true>(sums, b, c, b_max, shift);
            else
                add_head<false>(sums, b, c, b_max, shift);
        }
    });

    const double w = sum(sums.w), excess = sum(sums.excess) / w, delta = ::log1p(excess);
    const double log_w = ::log(w);
    const double kld = sum(sums.kld) / w, reverse = sum(sums.reverse) / w / (1.0 + excess);
    const double js = sum(sums.js) / w;
    RowMetrics row{};
    row.nll_base = log_w - (static_cast<double>(base[target]) - b_max);
    row.nll = log_w + delta + shift - (static_cast<double>(cand[target]) - b_max);
    row.kld = ::fmax(kld - phi(delta), 0.0);
    row.kld_reverse = ::fmax(reverse - phi(-delta), 0.0);
    row.js = ::fmin(::fmax(js * (1.0 - delta / 2) - delta * delta / 8, 0.0), ln2);
    row.p_base = ::exp(-row.nll_base);
    row.p = ::exp(-row.nll);
    row.entropy_base = log_w - sum(sums.w_ln_w) / w;
    row.entropy = log_w + delta - sum(sums.v_ln_v) / (w * (1.0 + excess));
    row.same_top = b_top.index[0] == c_top.index[0];
    row.top5_overlap = overlap(b_top, c_top, 5);
    row.top10_overlap = overlap(b_top, c_top, 10);
    return row;
}

}  // namespace
}  // namespace bitloss
