// One row of divergence/metrics.py, vectorised, in one pass over the logits. See divergence_lanes.hpp for how it is
// compiled.
//
// t = c - b - L, where L = ln(Σ e^c / Σ e^b) is known at the end only. The pass measures t from a guess of L and takes of
// nearly all entries the sums of w = e^b, w b, v = e^c, v c and w t^k; whatever else is wanted of entries with |t| <= 3/4
// follows from these, about the true L (divergence_terms.hpp). The others are put aside, and looked at when L is known:
//   heads   entries that are likely: taken in double;
//   far     entries with a larger |t|: in closed forms.
// L need not be exact either, because its error is known afterwards: with δ = ln(Σ w e^t / Σ w), the true t is t - δ, and
// (φ(t) = e^t - 1 - t, Σ p e^(t-δ) = 1)
//   KLD = Σ p φ(t) - φ(δ),   reverse = Σ q φ(-t) - φ(-δ),   JS ≈ Σ p f(t)·(1 - δ/2) - δ²/8,
// the last to first order in δ ~ 1e-8, with KL(p ‖ m) taken as JS.
// Equal rows have L = 0 and t = 0 exactly, so every divergence is exactly 0.
//
// Precision: floats, of which every term is good to a few 1e-7 with errors of both signs; sums are kept in double. What
// concerns the base alone takes no notice of the candidate, so that a base's figures are the same, bit for bit, beside
// every candidate.
#include "divergence.hpp"
#include "divergence_pass.hpp"

namespace bitloss {
namespace {

constexpr double guessed_by = 0.25;  // error of the guess up to which the polynomials hold
constexpr double wide = 0.08;        // mean square of t in the sample, from which on the guess is made sharper

// Calls use(b, c) for what was put aside, as vectors of doubles.
template <class Use>
void for_doubles(const Aside& of, const Use& use) {
    for (std::size_t i = 0; i < of.count; i += n_float) {
        const Floats b = load<Floats>(of.base + i), c = load<Floats>(of.cand + i);
        use(low_half(b), low_half(c));
        use(high_half(b), high_half(c));
    }
}

// What follows once a row is read; `again` when the guess was too far off, with what it should have been.
struct Outcome {
    RowMetrics row;
    float guess;
    bool again;
};

Outcome finish(Row& row, std::size_t target) {
    Side &b = row.b, &c = row.c;
    const double apart = c.scale.at - b.scale.at;
    const auto pad = [&](const Aside& of, double depth, double shift) {
        of.pad(static_cast<float>(b.scale.at - depth), static_cast<float>(b.scale.at - depth + shift));
    };
    // From here on weights are e^(b - at), without the factor of the scale that the floats have.
    const double near_and_other = sum(b.sum);
    b.unscale();
    c.unscale();
    // Heads: what they add to either side. Padding weighs e^-600.
    pad(row.base_heads, 600.0, apart);
    pad(row.cand_heads, 600.0, apart);
    const auto weigh = [](Side& side, Doubles x) {
        const Doubles w = exp(x - side.scale.at);
        side.sum += w;
        side.product += w * (x - side.scale.at);
    };
    for_doubles(row.base_heads, [&](Doubles x, Doubles y) {
        weigh(b, x);
        weigh(c, y);
    });
    for_doubles(row.cand_heads, [&](Doubles, Doubles y) { weigh(c, y); });
    const double w = sum(b.sum), v = sum(c.sum), b_log = ::log(w), c_log = ::log(v);
    const double l = apart + (c_log - b_log);

    double m[moments];
    for (std::size_t k = 1; k < moments; ++k) m[k] = sum(row.moment[k]);
    m[0] = near_and_other - sum(row.moment[0]);
    const double off = l - static_cast<double>(row.guess), squares = m[2];
    move_origin(m, off);
    Totals totals = near_totals(m);

    Sums<Doubles> sums;
    const float l_high = static_cast<float>(l), l_low = static_cast<float>(l - static_cast<double>(l_high));
    const float ratio = static_cast<float>(::exp(apart - l) / c.scale.factor * b.scale.factor);
    pad(row.far, 83.0, l);
    const Exponential exp_b(b.scale), exp_c(c.scale), plain(Scale(0.0F));
    for (std::size_t i = 0; i < row.far.count; i += n_float) {
        const Floats x = load<Floats>(row.far.base + i), y = load<Floats>(row.far.cand + i);
        Sums<Floats> part;
        add(part, exp_b(x), exp_c(y) * ratio, ((y - x) - l_high) - l_low, plain);
        add_to(sums.excess, part.excess);
        add_to(sums.kld, part.kld);
        add_to(sums.reverse, part.reverse);
        add_to(sums.js, part.js);
    }
    totals += sums;
    totals /= b.scale.factor;

    sums = {};
    const auto add_heads = [&](Doubles x, Doubles y) {
        const Doubles t = (y - x) - l, lower = x - b.scale.at;
        add(sums, exp(lower), exp(lower + t), t, [](Doubles x_) { return exp(x_); });
    };
    for_doubles(row.base_heads, add_heads);
    for_doubles(row.cand_heads, add_heads);
    totals += sums;

    const double excess = totals.excess / w, delta = ::log1p(excess);
    const double kld = totals.kld / w, reverse = totals.reverse / w / (1.0 + excess), js = totals.js / w;
    Outcome out{};
    RowMetrics& to = out.row;
    to.nll_base = b_log - (static_cast<double>(row.base[target]) - b.scale.at);
    to.nll = c_log - (static_cast<double>(row.cand[target]) - c.scale.at);
    to.kld = ::fmax(kld - phi(delta), 0.0);
    to.kld_reverse = ::fmax(reverse - phi(-delta), 0.0);
    to.js = ::fmin(::fmax(js * (1.0 - delta / 2) - delta * delta / 8, 0.0), ln2);
    to.p_base = ::exp(-to.nll_base);
    to.p = ::exp(-to.nll);
    to.entropy_base = ::fmax(b_log - sum(b.product) / w, 0.0);
    to.entropy = ::fmax(c_log - sum(c.product) / v, 0.0);
    to.same_top = b.top.index[0] == c.top.index[0];
    to.top5_overlap = overlap(b.top, c.top, 5);
    to.top10_overlap = overlap(b.top, c.top, 10);
    // Moments about a guess that is off by more than t varies are differences of large numbers; where few entries are
    // added up their errors do not cancel. And the weight of near entries is itself a difference, of two sums.
    const double factor = b.scale.factor, most = (row.n > small ? 10.0 : 1.5) * factor;
    out.again = ::fabs(off) > guessed_by || squares > most * (2.0 * totals.kld + 1e-30 * w) ||
                off * off * sum(row.moment[0]) > 0.3 * factor * totals.kld;
    out.guess = l_high;
    return out;
}

float maximum(const float* x, std::size_t n) {
    float top = x[0];
    for (std::size_t i = 1; i < n; ++i) top = x[i] > top ? x[i] : top;
    return top;
}

RowMetrics row_vector(const float* base, const float* cand, std::size_t n, std::size_t target, float* scratch) {
    const NoSubnormals only_here;
    const Sample sample(base, cand, n);
    // Each side's scale, and the sum in it, by the estimate: at the maximum, once that had to be looked for.
    struct Place {
        float at;
        double likely;
    };
    float guess = sample.guess;
    Place b{sample.b_top, sample.b_likely}, c{sample.b_top + guess, sample.c_likely};
    const auto usable = [&] { return ::fabsf(b.at) <= largest && ::fabsf(c.at) <= 3 * largest; };  // NaN is not
    if (sample.spread > wide && usable()) {
        const float sharper = sharper_guess(base, cand, n, Scale(b.at), Scale(c.at));
        if (::fabsf(sharper - guess) < 20.0F) guess = sharper;
    }
    bool scaled = false, guessed = false;
    while (usable()) {
        Row row(base, cand, n, scratch, Side(b.at, b.likely, sample.b_head), Side(c.at, c.likely, sample.c_head), guess);
        const Pass pass = read_row(row);
        if (pass == Pass::refused) break;
        if (pass == Pass::scale) {
            if (scaled) break;
            scaled = true;
            const float b_top = maximum(base, n), c_top = maximum(cand, n);
            if (b_top > row.b.scale.highest) b = {b_top, 1.0};
            c = {c_top, 1.0};
            guess = c.at - b.at;
            continue;
        }
        const Outcome out = finish(row, target);
        if (!out.again || guessed) return out.row;
        guessed = true;
        guess = out.guess;
    }
    RowMetrics row = row_scalar(base, cand, n, target);
    if (base != cand) {  // what a side is by itself, it is beside any other
        const RowMetrics b = row_vector(base, base, n, target, scratch), c = row_vector(cand, cand, n, target, scratch);
        row.nll_base = b.nll_base;
        row.p_base = b.p_base;
        row.entropy_base = b.entropy_base;
        row.nll = c.nll;
        row.p = c.p;
        row.entropy = c.entropy;
    }
    return row;
}

}  // namespace
}  // namespace bitloss
