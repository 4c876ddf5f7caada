#pragma once
// The one pass over a row: sums of nearly all entries, and the others put aside. See divergence_lanes.hpp for how it is
// compiled.
#include "divergence_guess.hpp"
#include "divergence_terms.hpp"

namespace bitloss {
namespace {

constexpr float near = 0.75F;    // |t|, by the guess
constexpr float largest = 1e4F;  // beyond, differences of floats lose too much
constexpr std::size_t first_block = 16 / n_float + 1;
constexpr unsigned every_lane = (1U << n_float) - 1;

// Pairs of logits put aside.
struct Aside {
    float *base, *cand;
    std::size_t count = 0;

    void take(Mask m, Floats b, Floats c) {
        store_only(base + count, m, b);
        count += store_only(cand + count, m, c);
    }
    // Fills a vector up with pairs that weigh nothing.
    void pad(float b, float c) const {
        for (std::size_t i = count; i < count + n_float; ++i) base[i] = b, cand[i] = c;
    }
};

// One side of a row, while it is read.
struct Side {
    Scale scale;
    double likely, depth;  // an estimate of the sum; likely are entries above e^-depth of it
    Top top;
    Doubles sum{}, product{}, heads{};  // Σ w and Σ w (b - at) but of heads; Σ w of heads, roughly
    float head_from = -HUGE_VALF;

    Side(float at, double likely_, double depth_) : scale(at), likely(likely_), depth(depth_) { set_head(); }

    // ln, to 0.06 too small.
    static double rough_log(double x) {
        std::int64_t raw;
        __builtin_memcpy(&raw, &x, sizeof raw);
        return (static_cast<double>(raw) * 0x1p-52 - 1023.0) * ln2;
    }
    void set_head() {
        const double now = bitloss::sum(sum + heads) / scale.factor;
        head_from = static_cast<float>(rough_log(now > likely ? now : likely) + scale.at - depth);
        head_from = head_from < scale.highest ? head_from : scale.highest;
    }
    // Makes weights e^(x - at): without the factor of the scale, that floats have.
    void unscale() {
        sum /= scale.factor;
        product /= scale.factor;
    }
    // What is below needs no look.
    float threshold() const {
        const float least = top.least();
        return head_from < least ? head_from : least;
    }
};

enum class Pass { done, scale, refused };

struct Row {
    const float *base, *cand;
    std::size_t n;
    Side b, c;
    float guess;
    Aside base_heads, cand_heads, far;
    Doubles moment[moments]{};  // of near entries; [0]: what b.sum has of others

    Row(const float* base_, const float* cand_, std::size_t n_, float* scratch, const Side& b_, const Side& c_, float guess_)
        : base(base_), cand(cand_), n(n_), b(b_), c(c_), guess(guess_) {
        const std::size_t room = n + 2 * n_float;
        base_heads = {scratch, scratch + room};
        cand_heads = {scratch + 2 * room, scratch + 3 * room};
        far = {scratch + 4 * room, scratch + 5 * room};
    }
};

// A vector in which something is likely, far, or not for this kernel at all: adds what read_block has not added. `b_done`
// and `c_done` are the lanes of which it has added the weights, all but the far ones of both the moments as well.
__attribute__((noinline)) Pass set_aside(Row& row, Floats b, Floats c, Floats from_b, Floats from_c, std::size_t at,
                                         std::size_t lanes) {
    const unsigned valid = (1U << lanes) - 1;
    const Floats t = (c - b) - row.guess;
    const auto size = [](Floats x) { return larger(-x, x); };
    const Mask b_done = at_most(b, from_b), c_done = at_most(c, from_c) & b_done;
    if ((bits(at_most(size(c - b), all<Floats>(3 * largest))) & bits(at_most(size(b), all<Floats>(largest))) & valid) != valid)
        return Pass::refused;
    if (any_above(b, all<Floats>(row.b.scale.highest)) || any_above(c, all<Floats>(row.c.scale.highest)))
        return Pass::scale;
    const Mask b_head = above(b, all<Floats>(row.b.head_from));
    const Mask c_head = above(c, all<Floats>(row.c.head_from)) & ~b_head;
    const Mask any_head = b_head | c_head, is_near = at_most(t * t, all<Floats>(near * near));
    const Mask is_far = ~(any_head | is_near);
    if (bits(is_far) != 0) row.far.take(is_far, b, c);
    const Floats w = Exponential(row.b.scale)(b);
    if (bits(c_done) != every_lane) {
        const auto offer = [&](Top& top, Floats x) {
            for (unsigned left = bits(above(x, all<Floats>(top.least()))) & valid; left != 0; left &= left - 1) {
                const unsigned i = static_cast<unsigned>(__builtin_ctz(left));
                top.offer(x[i], at + i);
            }
        };
        offer(row.b.top, b);
        offer(row.c.top, c);
        if (bits(b_head) != 0) row.base_heads.take(b_head, b, c);
        if (bits(c_head) != 0) row.cand_heads.take(c_head, b, c);
        const Floats v = Exponential(row.c.scale)(c), w_new = only(~(b_head | b_done), w);
        const Floats v_new = only(~(any_head | c_done), v);
        add_to(row.b.heads, only(b_head, w));
        add_to(row.c.heads, only(any_head, v));
        add_to(row.b.sum, w_new);
        add_to(row.c.sum, v_new);
        add_to(row.b.product, w_new * (b - static_cast<float>(row.b.scale.at)));
        add_to(row.c.product, v_new * (c - static_cast<float>(row.c.scale.at)));
        Floats power = only(~any_head & is_near & ~c_done, w);
        for (std::size_t k = 1; k < moments; ++k) add_to(row.moment[k], power = power * t);
    }
    add_to(row.moment[0], only(c_head | is_far, w));  // all of b.sum but these are near
    return Pass::done;
}

// Reads at most `block` vectors, of which the first entry has the index `first`; of the last, `lanes` are valid.
__attribute__((noinline)) Pass read_block(Row& row, const float* base, const float* cand, std::size_t first,
                                          std::size_t vectors, std::size_t lanes) {
    Floats sum_b{}, sum_c{}, product_b{}, product_c{};
    Floats m1{}, m2{}, m3{}, m4{}, m5{}, m6{}, m7{}, m8{}, m9{};
    const Scale &scale_b = row.b.scale, &scale_c = row.c.scale;
    const Exponential exp_b(scale_b), exp_c(scale_c);
    const Floats from_b = all<Floats>(row.b.threshold()), from_c = all<Floats>(row.c.threshold());
    const Floats guess = all<Floats>(row.guess);
    const Floats at_b = all<Floats>(static_cast<float>(scale_b.at)), at_c = all<Floats>(static_cast<float>(scale_c.at));
    std::uint8_t special[block + 1];
    std::size_t specials = 0;
    for (std::size_t k = 0; k < vectors; ++k) {
        const Floats b = load<Floats>(base + k * n_float), c = load<Floats>(cand + k * n_float);
        prefetch(base + k * n_float);
        prefetch(cand + k * n_float);
        const Floats w = exp_b(b), v = exp_c(c), t = (c - b) - guess, u = t * t;
        const Mask for_b = at_most(b, from_b), for_c = at_most(c, from_c) & for_b;
        const Mask for_both = at_most(u, all<Floats>(near * near)) & for_c;
        special[specials] = static_cast<std::uint8_t>(k);
        specials += !every(for_both);
        sum_b = add_where(for_b, sum_b, w);
        sum_c = add_where(for_c, sum_c, v);
        // What is below the scale weighs as much as its lowest, and must not count for more: a mask can be any number.
        product_b = add_product_where(for_b, product_b, w, larger(exp_b.lowest, b) - at_b);
        product_c = add_product_where(for_c, product_c, v, larger(exp_c.lowest, c) - at_c);
        const Floats p2 = product_where(for_both, w, u), p4 = p2 * u, p6 = p4 * u, p8 = p6 * u;
        m1 = add_product_where(for_both, m1, w, t);
        m2 += p2;
        m3 += p2 * t;
        m4 += p4;
        m5 += p4 * t;
        m6 += p6;
        m7 += p6 * t;
        m8 += p8;
        m9 += p8 * t;
    }
    add_to(row.b.sum, sum_b);
    add_to(row.c.sum, sum_c);
    add_to(row.b.product, product_b);
    add_to(row.c.product, product_c);
    const Floats m[] = {m1, m2, m3, m4, m5, m6, m7, m8, m9};
    for (std::size_t k = 1; k < moments; ++k) add_to(row.moment[k], m[k - 1]);
    for (std::size_t i = 0; i < specials; ++i) {
        const std::size_t k = special[i];
        const Pass pass =
            set_aside(row, load<Floats>(base + k * n_float), load<Floats>(cand + k * n_float), from_b, from_c,
                      first + k * n_float, k + 1 == vectors ? lanes : n_float);
        if (pass != Pass::done) return pass;
    }
    row.b.set_head();
    row.c.set_head();
    return Pass::done;
}

Pass read_row(Row& row) {
    const std::size_t whole = row.n / n_float, rest = row.n - whole * n_float;
    // The first block is short: before ten entries are known, all are looked at.
    for (std::size_t k = 0, vectors = first_block; k < whole; k += vectors, vectors = block) {
        if (vectors > whole - k) vectors = whole - k;
        const Pass pass = read_block(row, row.base + k * n_float, row.cand + k * n_float, k * n_float, vectors, n_float);
        if (pass != Pass::done) return pass;
    }
    if (rest == 0) return Pass::done;
    float last_b[n_float], last_c[n_float];
    for (std::size_t i = 0; i < n_float; ++i) {
        last_b[i] = i < rest ? row.base[whole * n_float + i] : row.b.scale.lowest;
        last_c[i] = i < rest ? row.cand[whole * n_float + i] : row.b.scale.lowest + row.guess;
    }
    return read_block(row, last_b, last_c, whole * n_float, 1, rest);
}

}  // namespace
}  // namespace bitloss
