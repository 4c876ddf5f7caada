#pragma once
// What a row is like, from a look at some of it: where its sums will be, and what t is to be measured from. See
// divergence_lanes.hpp for how it is compiled.
#include "divergence_lanes.hpp"

namespace bitloss {
namespace {

constexpr std::size_t block = 32;       // vectors added up in float
constexpr std::uintptr_t ahead = 4096;  // bytes
constexpr double head = 10.0, flat_head = 8.0;  // likely: above e^-head of the sum so far, or of an estimate
constexpr std::size_t rare = 64;                // one in so many may be likely, in rows
constexpr std::size_t small = 8192;             // of more entries than this

// Asks for what is read next but one block: rows lie one behind the other, and where nothing lies nothing happens.
__attribute__((always_inline)) inline void prefetch(const float* at) {
    __builtin_prefetch(reinterpret_cast<const char*>(reinterpret_cast<std::uintptr_t>(at) + ahead), 0, 3);
}

// A look at some vectors of a row.
struct Sample {
    float b_top, guess;
    double spread;              // mean square of t
    double b_likely, c_likely;  // Σ e^(b - b_top) of the row, by the half of the sample with less; c: from b_top + guess
    double b_head, c_head;      // what is likely: e^-head of that

    Sample(const float* base, const float* cand, std::size_t n) {
        constexpr std::size_t most = 16;
        const std::size_t whole = n / n_float, count = whole < most ? (whole < 1 ? 1 : whole) : most;
        Floats b[most], c[most];
        for (std::size_t i = 0; i < count; ++i) {
            const std::size_t at = whole * i / count * n_float;
            if (whole > 0) {
                b[i] = load<Floats>(base + at);
                c[i] = load<Floats>(cand + at);
            } else {
                for (std::size_t j = 0; j < n_float; ++j) {
                    b[i][j] = base[j < n ? j : 0];
                    c[i][j] = cand[j < n ? j : 0];
                }
            }
        }
        Floats top = b[0];
        for (std::size_t i = 1; i < count; ++i) top = larger(b[i], top);
        b_top = top[0];
        for (std::size_t j = 1; j < n_float; ++j) b_top = top[j] > b_top ? top[j] : b_top;
        if (::fabsf(b_top) < 1e-30F) b_top = 0.0F;  // sums with it would be subnormal
        // The guess: a mean in which likely entries count for more, but none for all.
        const Exponential plain(Scale(0.0F));
        Doubles weight{}, shifted{}, squared{};
        for (std::size_t i = 0; i < count; ++i) {
            const Floats w = plain((b[i] - b_top) * 0.5F);
            add_to(weight, w);
            add_to(shifted, w * (c[i] - b[i]));
            add_to(squared, w * (c[i] - b[i]) * (c[i] - b[i]));
        }
        const double mean = sum(shifted) / sum(weight);
        guess = static_cast<float>(mean);
        spread = sum(squared) / sum(weight) - mean * mean;
        Doubles likely_b[2]{}, likely_c[2]{};
        for (std::size_t i = 0; i < count; ++i) {
            add_to(likely_b[i % 2], plain(b[i] - b_top));
            add_to(likely_c[i % 2], plain(c[i] - (b_top + guess)));
        }
        const double share = static_cast<double>(n) / static_cast<double>(count * n_float);
        const auto estimate = [&](const Doubles (&half)[2]) {
            const double first = sum(half[0]), second = sum(half[1]);
            return count < 2 ? first : 2.0 * share * (first < second ? first : second);
        };
        b_likely = estimate(likely_b);
        c_likely = estimate(likely_c);
        // Flat rows would have many entries that are just likely, and none that matters by itself.
        std::size_t b_many = 0, c_many = 0;
        const float least = static_cast<float>(::exp(-head));
        for (std::size_t i = 0; i < count; ++i) {
            const auto lanes = [](Mask m) { return static_cast<std::size_t>(__builtin_popcount(bits(m))); };
            b_many += lanes(above(plain(b[i] - b_top), all<Floats>(static_cast<float>(b_likely) * least)));
            c_many += lanes(above(plain(c[i] - (b_top + guess)), all<Floats>(static_cast<float>(c_likely) * least)));
        }
        b_head = b_many * rare > count * n_float && n > small ? flat_head : head;
        c_head = c_many * rare > count * n_float && n > small ? flat_head : head;
    }
};

// ln(Σ e^c / Σ e^b), read once more: where entries differ much, a sample knows it badly. Not finite where a sum is not.
float sharper_guess(const float* base, const float* cand, std::size_t n, const Scale& b_scale, const Scale& c_scale) {
    const Exponential exp_b(b_scale), exp_c(c_scale);
    Doubles b_sum{}, c_sum{};
    const std::size_t whole = n / n_float;
    for (std::size_t k = 0; k < whole;) {
        Floats b{}, c{};
        for (const std::size_t end = k + block < whole ? k + block : whole; k < end; ++k) {
            prefetch(base + k * n_float);
            prefetch(cand + k * n_float);
            b += exp_b(load<Floats>(base + k * n_float));
            c += exp_c(load<Floats>(cand + k * n_float));
        }
        add_to(b_sum, b);
        add_to(c_sum, c);
    }
    double b_rest = 0.0, c_rest = 0.0;
    for (std::size_t i = whole * n_float; i < n; ++i) {
        b_rest += ::exp(static_cast<double>(base[i]) - b_scale.at);
        c_rest += ::exp(static_cast<double>(cand[i]) - c_scale.at);
    }
    const double of_b = sum(b_sum) / b_scale.factor + b_rest, of_c = sum(c_sum) / c_scale.factor + c_rest;
    return static_cast<float>(c_scale.at - b_scale.at + ::log(of_c / of_b));
}

}  // namespace
}  // namespace bitloss
