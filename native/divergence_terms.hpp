#pragma once
// The terms of divergences: one by one, and from moments. See divergence_lanes.hpp for how it is compiled.
#include "divergence_lanes.hpp"

namespace bitloss {
namespace {

// Sums over entries, with v = w e^t:  Σ(v - w), Σw·φ(t), Σv·φ(-t), Σw·f(t).
template <class V>
struct Sums {
    V excess{}, kld{}, reverse{}, js{};
};

template <class V>
struct Polynomials;
template <>
struct Polynomials<Floats> {
    static constexpr auto& phi = polynomial::phi_float;
    static constexpr auto& js = polynomial::js_float;
    static constexpr auto& log1p = polynomial::log1p_float;
};
template <>
struct Polynomials<Doubles> {
    static constexpr auto& phi = polynomial::phi_double;
    static constexpr auto& js = polynomial::js_double;
    static constexpr auto& log1p = polynomial::log1p_double;
};

// Adds one vector of entries: weights w and v in one scale, t = ln(v/w). `exp` is e^x of V.
template <class V, class Exp>
void add(Sums<V>& sums, V w, V v, V t, const Exp& exp) {
    using P = Polynomials<V>;
    const V t2 = t * t;
    const V phi = evaluate(P::phi, t) * t2;
    const V js = evaluate(P::js, t) * t2;
    const V step = t + phi;                       // e^t - 1
    const V reverse = t2 + (t * phi - phi);       // e^t φ(-t)
    if (!any_above(t2, all<V>(1))) [[likely]] {
        sums.excess += w * step;
        sums.kld += w * phi;
        sums.reverse += w * reverse;
        sums.js += w * js;
        return;
    }
    const auto far = t2 > 1;
    // Lanes with |t| > 1: closed forms in w and v, whose terms no longer cancel.
    const V a = exp(t > 0 ? -t : t);
    const V above = t > 0 ? t : V{}, rest = a * evaluate(P::log1p, a);  // ln(1 + e^t) = above + rest
    sums.excess += far ? v - w : w * step;
    sums.kld += far ? v - w - w * t : w * phi;
    sums.reverse += far ? w - v + v * t : w * reverse;
    // v t - (w + v) (ln(1 + e^t) - ln 2), with v·above taken out of both
    sums.js +=
        far ? (v * (t - above) - w * above - (w + v) * (rest - static_cast<typename Element<V>::Type>(ln2))) / 2 : w * js;
}

struct Totals {
    double excess = 0.0, kld = 0.0, reverse = 0.0, js = 0.0;

    void operator+=(const Sums<Doubles>& s) {
        excess += sum(s.excess);
        kld += sum(s.kld);
        reverse += sum(s.reverse);
        js += sum(s.js);
    }
    void operator/=(double by) { excess /= by, kld /= by, reverse /= by, js /= by; }
};

// Near entries: all these are polynomials in t, so Σ w t^k for k up to 9 are all that has to be known of them. And of
// what t is measured from can be decided when they are: another origin is another sum of the same moments.
constexpr std::size_t moments = 10;

// Σ w (t - by)^k from Σ w t^k.
void move_origin(double (&m)[moments], double by) {
    for (std::size_t first = 1; first < moments; ++first)
        for (std::size_t k = moments - 1; k >= first; --k) m[k] -= by * m[k - 1];
}

Totals near_totals(const double (&m)[moments]) {
    static_assert(sizeof polynomial::near_phi == sizeof(double) * (moments - 2));
    Totals out;
    for (std::size_t k = moments - 1; k >= 2; --k) {
        out.kld += polynomial::near_phi[k - 2] * m[k];
        out.reverse += polynomial::near_reverse[k - 2] * m[k];
        out.js += polynomial::near_js[k - 2] * m[k];
    }
    out.excess = m[1] + out.kld;
    return out;
}

double phi(double t) {
    if (t < -1.0 || t > 1.0) return ::expm1(t) - t;
    double value = 0.0;
    for (std::size_t k = sizeof polynomial::phi_double / sizeof(double); k-- > 0;)
        value = value * t + polynomial::phi_double[k];
    return value * t * t;
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
    // What the others must be above.
    float least() const { return filled == 10 ? value[9] : -HUGE_VALF; }
};

float overlap(const Top& a, const Top& b, std::size_t k) {
    if (k > a.filled) k = a.filled;
    std::size_t shared = 0;
    for (std::size_t i = 0; i < k; ++i)
        for (std::size_t j = 0; j < k; ++j) shared += a.index[i] == b.index[j];
    return static_cast<float>(static_cast<double>(shared) / static_cast<double>(k));
}

}  // namespace
}  // namespace bitloss
