// The definition of divergence/metrics.py in plain C++, all in double, for any logits. The vector kernels hand rows
// to it that hold infinities, NaN or logits beyond 1e4.
#include <array>
#include <cmath>
#include <limits>
#include <numbers>

#include "divergence.hpp"

namespace bitloss {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();
constexpr double nan_value = std::numeric_limits<double>::quiet_NaN();

// Coefficients of e^t - 1 - t = t² Σ phi[k] t^k and of psi(s) = s² Σ psi[k] s^2k, lowest first.
constexpr auto phi_series = [] {
    std::array<double, 19> c{};
    double factorial = 1.0;
    for (std::size_t k = 0; k < c.size(); ++k) {
        factorial *= static_cast<double>(k + 2);
        c[k] = 1.0 / factorial;
    }
    return c;
}();
constexpr auto psi_series = [] {
    std::array<double, 26> c{};
    for (std::size_t k = 0; k < c.size(); ++k) {
        const auto m = static_cast<double>(2 * (k + 1));
        c[k] = 1.0 / (m * (m - 1.0));
    }
    return c;
}();

template <std::size_t N>
double horner(const std::array<double, N>& c, double x) {
    double sum = 0.0;
    for (std::size_t k = N; k-- > 0;) sum = sum * x + c[k];
    return sum;
}

double phi(double t) { return t * t * horner(phi_series, t); }

double psi(double s) {
    const double s2 = s * s;
    return s2 * horner(psi_series, s2);
}

struct Top {
    float value;
    bool usable;  // no NaN, no +inf, at least one finite logit
    std::array<std::size_t, 10> index;
};

// The largest `k` entries in order, the lower index first among equals.
Top find_top(const float* x, std::size_t n, std::size_t k) {
    Top top{-std::numeric_limits<float>::infinity(), true, {}};
    std::array<float, 10> value{};
    std::size_t filled = 0;
    for (std::size_t i = 0; i < n; ++i) {
        const float v = x[i];
        if (std::isnan(v)) top.usable = false;
        if (filled == k && !(v > value[k - 1])) continue;
        std::size_t at = filled < k ? filled++ : k - 1;
        for (; at > 0 && v > value[at - 1]; --at) {
            value[at] = value[at - 1];
            top.index[at] = top.index[at - 1];
        }
        value[at] = v;
        top.index[at] = i;
    }
    top.value = value[0];
    top.usable = top.usable && std::isfinite(top.value);
    return top;
}

float overlap(const Top& a, const Top& b, std::size_t k) {
    std::size_t shared = 0;
    for (std::size_t i = 0; i < k; ++i)
        for (std::size_t j = 0; j < k; ++j) shared += a.index[i] == b.index[j];
    return static_cast<float>(static_cast<double>(shared) / static_cast<double>(k));
}

double log_sum_exp(const float* x, std::size_t n, const Top& top) {
    if (!top.usable) return nan_value;
    double sum = 0.0;
    for (std::size_t i = 0; i < n; ++i) sum += std::exp(static_cast<double>(x[i]) - top.value);
    return std::log(sum);
}

double entropy(const float* x, std::size_t n, const Top& top, double log_sum) {
    if (!top.usable) return nan_value;
    double sum = 0.0;
    for (std::size_t i = 0; i < n; ++i) {
        const double nll = log_sum - (static_cast<double>(x[i]) - top.value);
        const double p = std::exp(-nll);
        if (p > 0.0) sum += p * nll;
    }
    return sum;
}

}  // namespace

RowMetrics row_scalar(const float* base, const float* cand, std::size_t n_vocab, std::size_t target) {
    const std::size_t k10 = n_vocab < 10 ? n_vocab : 10;
    const std::size_t k5 = n_vocab < 5 ? n_vocab : 5;
    const Top b = find_top(base, n_vocab, k10);
    const Top c = find_top(cand, n_vocab, k10);
    const double b_log = log_sum_exp(base, n_vocab, b);
    const double c_log = log_sum_exp(cand, n_vocab, c);

    RowMetrics row{};
    row.nll_base = b_log - (static_cast<double>(base[target]) - b.value);
    row.nll = c_log - (static_cast<double>(cand[target]) - c.value);
    row.p_base = std::exp(-row.nll_base);
    row.p = std::exp(-row.nll);
    row.entropy_base = entropy(base, n_vocab, b, b_log);
    row.entropy = entropy(cand, n_vocab, c, c_log);
    unsigned flags = 0;
    if (!std::isfinite(row.nll_base)) flags |= nonfinite_base;
    if (!std::isfinite(row.nll)) flags |= nonfinite_candidate;
    if (!(b.usable && c.usable)) {
        row.kld = row.kld_reverse = row.js = nan_value;
        row.top5_overlap = row.top10_overlap = std::numeric_limits<float>::quiet_NaN();
        row.nonfinite = static_cast<std::uint8_t>(flags);
        return row;
    }

    const double shift = c_log - b_log;
    double kld = 0.0, kld_reverse = 0.0, js = 0.0;
    for (std::size_t i = 0; i < n_vocab; ++i) {
        const double x = static_cast<double>(base[i]) - b.value;
        const double y = static_cast<double>(cand[i]) - c.value;
        const double p = std::exp(x - b_log);
        const double q = std::exp(y - c_log);
        if (std::isinf(x) || std::isinf(y)) {
            if (std::isinf(x) && std::isinf(y)) continue;
            if (std::isinf(y)) flags |= nonfinite_candidate, kld = inf;
            if (std::isinf(x)) flags |= nonfinite_base, kld_reverse = inf;
            kld += q;
            kld_reverse += p;
            js += 0.5 * std::numbers::ln2 * (p + q);
            continue;
        }
        const double t = (y - x) - shift;
        if (std::abs(t) <= 1.0) {
            kld += p * phi(t);
            kld_reverse += q * phi(-t);
            js += 0.5 * (p + q) * psi(std::tanh(0.5 * t));
        } else {
            kld += q - p - p * t;
            kld_reverse += p - q + q * t;
            const double softplus = t > 0.0 ? t + std::log1p(std::exp(-t)) : std::log1p(std::exp(t));
            js += 0.5 * (p * (std::numbers::ln2 - softplus) + q * (std::numbers::ln2 + t - softplus));
        }
    }
    row.kld = kld;
    row.kld_reverse = kld_reverse;
    row.js = js < std::numbers::ln2 ? js : std::numbers::ln2;
    row.same_top = b.index[0] == c.index[0];
    row.top5_overlap = overlap(b, c, k5);
    row.top10_overlap = overlap(b, c, k10);
    row.nonfinite = static_cast<std::uint8_t>(flags);
    return row;
}

}  // namespace bitloss
