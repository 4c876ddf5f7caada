// Binding of the audit: shares pieces out to threads and adds up what they count.
#include "audit.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "module.hpp"

namespace nb = nanobind;
using bitloss::AuditKernels;
using bitloss::CastTally;
using bitloss::FloatTally;
using bitloss::words;

namespace {

template <typename T, int Dims>
using In = nb::ndarray<const T, nb::ndim<Dims>, nb::c_contig, nb::device::cpu>;
template <typename T, int Dims>
using Out = nb::ndarray<T, nb::ndim<Dims>, nb::c_contig, nb::device::cpu>;

constexpr std::size_t worth_a_thread = 1U << 16;
constexpr std::size_t most_values = 1ULL << 31;  // counters of a call are 32 bits wide

struct Path {
    const char* name;
    AuditKernels (*kernels)();
    bool available;
};

// Best first; "wide" is never best: it shows on a machine without AVX-512 what its lanes compute.
std::vector<Path> paths() {
    return {
#if defined(__x86_64__)
        {"avx512", bitloss::audit_avx512,
         __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")},
        {"avx2", bitloss::audit_avx2, static_cast<bool>(__builtin_cpu_supports("avx2"))},
#endif
        {"portable", bitloss::audit_portable, true},
#if defined(__x86_64__)
        {"wide", bitloss::audit_wide, static_cast<bool>(__builtin_cpu_supports("avx2"))},
#endif
    };
}

AuditKernels pick(const std::string& isa) {
    for (const Path& path : paths())
        if (path.available && (isa == "auto" || isa == path.name)) return path.kernels();
    throw std::invalid_argument("instruction set not available: " + isa);
}

std::vector<std::string> audit_isas() {
    std::vector<std::string> names;
    for (const Path& path : paths())
        if (path.available) names.emplace_back(path.name);
    return names;
}

// Calls work(thread, first, end) for ranges that cover n.
template <class Work>
void share_out(std::size_t n, std::size_t threads, const Work& work) {
    std::vector<std::jthread> others;
    for (std::size_t t = 1; t < threads; ++t)
        others.emplace_back([&, t] { work(t, n * t / threads, n * (t + 1) / threads); });
    work(0, 0, n / threads);
}

std::size_t useful_threads(std::size_t n, std::size_t threads) {
    if (threads == 0) throw std::invalid_argument("threads must be at least 1");
    if (n > most_values) throw std::invalid_argument("more values than a call counts");
    return std::clamp<std::size_t>(n / worth_a_thread, 1, threads);
}

using Counters = std::unique_ptr<std::uint32_t[]>;

std::vector<Counters> counters(std::size_t threads, std::size_t size) {
    std::vector<Counters> all(threads);
    for (Counters& each : all) each = std::make_unique<std::uint32_t[]>(size);
    return all;
}

void count_words(const std::uint16_t* x, std::size_t n, std::uint32_t* counts) {
    // Two sets of counters, used in turn: an addition need not wait for the one before.
    std::uint32_t* other = counts + words;
    std::size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        std::uint64_t four;
        std::memcpy(&four, x + i, 8);
        ++counts[four & 0xffff];
        ++other[(four >> 16) & 0xffff];
        ++counts[(four >> 32) & 0xffff];
        ++other[four >> 48];
    }
    for (; i < n; ++i) ++counts[x[i]];
}

void audit_words(In<std::uint16_t, 1> x, Out<std::int64_t, 1> counts, std::size_t threads) {
    const std::size_t n = x.shape(0);
    if (counts.shape(0) != words) throw std::invalid_argument("audit_words: counts must have 65536 entries");
    threads = useful_threads(n, threads);
    const nb::gil_scoped_release unlocked;
    const std::vector<Counters> scratch = counters(threads, 2 * words);
    share_out(n, threads, [&](std::size_t t, std::size_t first, std::size_t end) {
        count_words(x.data() + first, end - first, scratch[t].get());
    });
    for (const Counters& each : scratch)
        for (std::size_t i = 0; i < words; ++i) counts.data()[i] += std::int64_t{each[i]} + each[i + words];
}

void join(CastTally& into, const CastTally& from) {
    into.changed += from.changed;
    into.overflowed += from.overflowed;
    into.zeroed += from.zeroed;
    into.error = std::max(into.error, from.error);
    into.relative = std::max(into.relative, from.relative);
}

void join(FloatTally& into, const FloatTally& from, const std::uint32_t* tops) {
    into.zeros += from.zeros;
    into.below += from.below;
    into.above += from.above;
    into.nans += from.nans;
    into.positive_infinities += from.positive_infinities;
    into.negative_infinities += from.negative_infinities;
    into.largest = std::max(into.largest, from.largest);
    into.smallest = std::min(into.smallest, from.smallest);
    join(into.f16, from.f16);
    join(into.bf16, from.bf16);
    for (int i = 0; i < bitloss::exponents; ++i) into.histogram[i] += from.histogram[i];
    for (std::size_t top = 0; top < 2 * words; ++top) {
        const int field = static_cast<int>((top & 0x7fff) >> 7);
        if (field != 0 && field != 255) into.histogram[field - 127 - bitloss::lowest_exponent] += tops[top];
    }
}

// Returns what is in a FloatTally, in its order; see _native.pyi.
nb::tuple as_tuple(const FloatTally& all) {
    const auto cast = [](const CastTally& c) {
        return nb::make_tuple(c.changed, c.overflowed, c.zeroed, c.error, c.relative);
    };
    return nb::make_tuple(all.zeros, all.below, all.above, all.nans, all.positive_infinities, all.negative_infinities,
                          all.largest, all.smallest, cast(all.f16), cast(all.bf16));
}

nb::tuple audit_floats(In<float, 1> x, Out<std::int64_t, 1> exact, Out<std::int64_t, 1> histogram,
                       std::size_t threads, const std::string& isa) {
    const AuditKernels kernels = pick(isa);
    const std::size_t n = x.shape(0);
    if (exact.shape(0) != words || histogram.shape(0) != bitloss::exponents)
        throw std::invalid_argument("audit_floats: words must have 65536 entries, histogram 277");
    threads = useful_threads(n, threads);
    FloatTally all;
    {
        const nb::gil_scoped_release unlocked;
        std::vector<FloatTally> tallies(threads);
        const std::vector<Counters> scratch = counters(threads, 4 * words);
        share_out(n, threads, [&](std::size_t t, std::size_t first, std::size_t end) {
            kernels.tally(x.data() + first, end - first, tallies[t], scratch[t].get(), scratch[t].get() + 2 * words);
        });
        for (std::size_t t = 0; t < threads; ++t) {
            join(all, tallies[t], scratch[t].get() + 2 * words);
            for (std::size_t i = 0; i < words; ++i)
                exact.data()[i] += std::int64_t{scratch[t][i]} + scratch[t][i + words];
        }
        for (int i = 0; i < bitloss::exponents; ++i)
            histogram.data()[i] += static_cast<std::int64_t>(all.histogram[i]);
    }
    return as_tuple(all);
}

void check_blocks(std::size_t n, std::size_t block, std::size_t marks) {
    if (block == 0 || block % 32 != 0 || n % block != 0 || marks != n / block)
        throw std::invalid_argument("mark_blocks: blocks of a multiple of 32 values, a mark for each");
}

void mark_words(In<std::uint16_t, 1> x, In<std::uint8_t, 1> flags, std::size_t block, Out<std::uint8_t, 1> marks,
                std::size_t threads) {
    check_blocks(x.shape(0), block, marks.shape(0));
    if (flags.shape(0) != words) throw std::invalid_argument("mark_words: flags must have 65536 entries");
    threads = useful_threads(x.shape(0), threads);
    const nb::gil_scoped_release unlocked;
    share_out(marks.shape(0), threads, [&](std::size_t, std::size_t first, std::size_t end) {
        for (std::size_t b = first; b < end; ++b) {
            unsigned some = 0;
            for (std::size_t i = b * block; i < (b + 1) * block; ++i) some |= flags.data()[x.data()[i]];
            marks.data()[b] = static_cast<std::uint8_t>(some);
        }
    });
}

void mark_floats(In<float, 1> x, std::size_t block, Out<std::uint8_t, 1> marks, std::size_t threads,
                 const std::string& isa) {
    const AuditKernels kernels = pick(isa);
    check_blocks(x.shape(0), block, marks.shape(0));
    threads = useful_threads(x.shape(0), threads);
    const nb::gil_scoped_release unlocked;
    share_out(marks.shape(0), threads, [&](std::size_t, std::size_t first, std::size_t end) {
        kernels.mark(x.data(), block, marks.data(), first, end);
    });
}

}  // namespace

void register_audit(nb::module_& m) {
    m.def("audit_isas", &audit_isas);
    m.def("audit_words", &audit_words, nb::arg("x"), nb::arg("counts").noconvert(), nb::arg("threads"));
    m.def("audit_floats", &audit_floats, nb::arg("x"), nb::arg("words").noconvert(),
          nb::arg("histogram").noconvert(), nb::arg("threads"), nb::arg("isa"));
    m.def("mark_words", &mark_words, nb::arg("x"), nb::arg("flags"), nb::arg("block"), nb::arg("marks").noconvert(),
          nb::arg("threads"));
    m.def("mark_floats", &mark_floats, nb::arg("x"), nb::arg("block"), nb::arg("marks").noconvert(),
          nb::arg("threads"), nb::arg("isa"));
}
