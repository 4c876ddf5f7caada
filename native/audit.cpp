// Binding of the audit: shares pieces out to threads and adds up what they count.
#include "audit.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "arrays.hpp"
#include "module.hpp"

namespace nb = nanobind;
using bitloss::AuditKernels;
using bitloss::BlockTally;
using bitloss::CastTally;
using bitloss::FloatTally;
using bitloss::WordTally;
using bitloss::words;

namespace {

using bitloss::In;
using bitloss::Out;

constexpr std::size_t q8_0_block = 32;
constexpr std::size_t shared_out = bitloss::most_at_once;
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

// Calls work(thread, first, end) for pieces that cover n, whichever thread comes to them.
template <class Work>
void share_out(std::size_t n, std::size_t piece, std::size_t threads, const Work& work) {
    std::atomic<std::size_t> next{0};
    const auto loop = [&](std::size_t thread) {
        for (std::size_t at; (at = next.fetch_add(piece, std::memory_order_relaxed)) < n;)
            work(thread, at, std::min(n, at + piece));
    };
    std::vector<std::jthread> others;
    for (std::size_t t = 1; t < threads; ++t) others.emplace_back(loop, t);
    loop(0);
}

std::size_t useful_threads(std::size_t n, std::size_t threads) {
    if (threads == 0) throw std::invalid_argument("threads must be at least 1");
    if (n > most_values) throw std::invalid_argument("more values than a call counts");
    return std::clamp<std::size_t>(n / shared_out, 1, threads);
}

struct Words {
    WordTally tally;
    std::uint32_t* table = nullptr;  // zeros before a call, and again after it
};

// What a thread has counted.
struct Counted {
    FloatTally floats;
    Words f16, bf16;
    BlockTally blocks;
};

// Words that were counted one by one, and how often each came; a word may be there again for another thread.
struct OddWords {
    std::vector<std::uint16_t> word;
    std::vector<std::int64_t> times;

    // Takes a table's counts, and leaves zeros.
    void take(std::uint32_t* table) {
        for (std::size_t i = 0; i < words; i += 16) {
            std::uint32_t some = 0;
            for (std::size_t j = 0; j < 16; ++j) some |= table[i + j];
            if (some == 0) continue;
            for (std::size_t j = i; j < i + 16; ++j) {
                if (table[j] == 0) continue;
                word.push_back(static_cast<std::uint16_t>(j));
                times.push_back(table[j]);
                table[j] = 0;
            }
        }
    }
};

void join(CastTally& into, const CastTally& from) {
    into.changed += from.changed;
    into.overflowed += from.overflowed;
    into.zeroed += from.zeroed;
    into.error = std::max(into.error, from.error);
    into.relative = std::max(into.relative, from.relative);
}

void join(FloatTally& into, const FloatTally& from) {
    into.values += from.values;
    into.below += from.below;
    into.above += from.above;
    into.nans += from.nans;
    into.positive_infinities += from.positive_infinities;
    into.negative_infinities += from.negative_infinities;
    into.largest = std::max(into.largest, from.largest);
    into.smallest = std::min(into.smallest, from.smallest);
    join(into.f16, from.f16);
    join(into.bf16, from.bf16);
    for (std::size_t i = 0; i < std::size(into.subnormals); ++i) into.subnormals[i] += from.subnormals[i];
    for (std::size_t i = 0; i < std::size(into.fields); ++i) into.fields[i] += from.fields[i];
}

void join(Words& into, const Words& from) {
    into.tally.plain += from.tally.plain;
    into.tally.below += from.tally.below;
    into.tally.changed += from.tally.changed;
    for (std::size_t i = 0; i < std::size(into.tally.fields); ++i) into.tally.fields[i] += from.tally.fields[i];
}

void join(bitloss::ThroughTally& into, const bitloss::ThroughTally& from) {
    into.changed += from.changed;
    into.overflowed += from.overflowed;
}

void join(BlockTally& into, const BlockTally& from) {
    into.blocks += from.blocks;
    into.not_finite += from.not_finite;
    join(into.f16, from.f16);
    join(into.bf16, from.bf16);
}

using Table = Out<std::int64_t, 1>;
using Scratch = Out<std::uint32_t, 2>;

// Calls work(thread's, first, end) for pieces of n values, and adds up what it counts, all but the tables.
template <class Work>
std::vector<Counted> count(std::size_t n, std::size_t threads, const Scratch& scratch, const Table& histogram,
                           const Work& work) {
    threads = useful_threads(n, threads);
    if (scratch.shape(0) < 2 * threads || scratch.shape(1) != words)
        throw std::invalid_argument("audit: scratch must have two rows of 65536 for each thread");
    if (histogram.shape(0) != bitloss::exponents) throw std::invalid_argument("audit: a histogram must have 277");
    std::vector<Counted> each(threads);
    for (std::size_t t = 0; t < threads; ++t) {
        each[t].f16.table = scratch.data() + 2 * t * words;
        each[t].bf16.table = scratch.data() + (2 * t + 1) * words;
    }
    const nb::gil_scoped_release unlocked;
    share_out(n, shared_out, threads, [&](std::size_t t, std::size_t first, std::size_t end) { work(each[t], first, end); });
    for (std::size_t t = 1; t < threads; ++t) {
        join(each[0].floats, each[t].floats);
        join(each[0].f16, each[t].f16);
        join(each[0].bf16, each[t].bf16);
        join(each[0].blocks, each[t].blocks);
    }
    return each;
}

template <class T>
nb::ndarray<nb::numpy, T, nb::ndim<1>> as_array(std::vector<T>&& values) {
    auto held = std::make_unique<std::vector<T>>(std::move(values));
    T* const data = held->data();
    const std::size_t n = held->size();
    return {data, {n}, nb::capsule(held.release(), [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); })};
}

nb::tuple odd_words(const std::vector<Counted>& each, Words Counted::* of) {
    OddWords odd;
    for (const Counted& one : each) odd.take((one.*of).table);
    return nb::make_tuple(as_array(std::move(odd.word)), as_array(std::move(odd.times)));
}

// Adds counts of normal numbers by exponent field.
void add_fields(const std::uint64_t (&fields)[256], int bias, const Table& histogram) {
    for (int field = 1; field < 2 * bias + 1; ++field)
        histogram.data()[field - bias - bitloss::lowest_exponent] += static_cast<std::int64_t>(fields[field]);
}

nb::tuple as_tuple(const BlockTally& of) {
    return nb::make_tuple(of.blocks, of.not_finite, nb::make_tuple(of.f16.changed, of.f16.overflowed),
                          nb::make_tuple(of.bf16.changed, of.bf16.overflowed));
}

// Returns odd words, (values, zeros, below, changed in BF16) of the others, and what blocks came to.
nb::tuple audit_words(bool f16, In<std::uint16_t, 1> x, Scratch scratch, Table histogram, bool blocks,
                      std::size_t threads, const std::string& isa) {
    const AuditKernels kernels = pick(isa);
    const std::size_t n = x.shape(0);
    if (blocks && n % q8_0_block != 0) throw std::invalid_argument("audit_words: whole blocks");
    const auto count_words = f16 ? kernels.words_of_f16 : kernels.words_of_bf16;
    const auto each = count(n, threads, scratch, histogram, [&](Counted& own, std::size_t first, std::size_t end) {
        count_words(x.data() + first, end - first, own.f16.tally, own.f16.table, blocks ? &own.blocks : nullptr);
    });
    const Counted& all = each[0];
    const WordTally& of = all.f16.tally;
    add_fields(of.fields, f16 ? 15 : 127, histogram);
    return nb::make_tuple(odd_words(each, &Counted::f16), of.plain, of.fields[0], of.below, of.changed,
                          as_tuple(all.blocks));
}

// Returns odd words, counts of what is not among them, and what blocks came to; see _native.pyi.
nb::tuple audit_floats(In<float, 1> x, Scratch scratch, Table histogram, bool blocks, std::size_t threads,
                       const std::string& isa) {
    const AuditKernels kernels = pick(isa);
    const std::size_t n = x.shape(0);
    if (blocks && n % q8_0_block != 0) throw std::invalid_argument("audit_floats: whole blocks");
    auto each = count(n, threads, scratch, histogram, [&](Counted& own, std::size_t first, std::size_t end) {
        kernels.floats(x.data() + first, end - first, own.floats, own.bf16.tally, own.bf16.table, own.f16.tally,
                       own.f16.table, blocks ? &own.blocks : nullptr);
    });
    Counted& all = each[0];
    FloatTally& of = all.floats;
    add_fields(of.fields, 127, histogram);
    std::uint64_t zeros = of.fields[0];
    for (std::size_t i = 0; i < std::size(of.subnormals); ++i) {
        histogram.data()[i] += static_cast<std::int64_t>(of.subnormals[i]);
        zeros -= of.subnormals[i];
    }
    for (const WordTally* plain : {&all.f16.tally, &all.bf16.tally}) {
        add_fields(plain->fields, plain == &all.f16.tally ? 15 : 127, histogram);
        of.values += plain->plain;
        of.below += plain->below;
        of.bf16.changed += plain->changed;
        zeros += plain->fields[0];
    }
    const auto cast = [](const CastTally& c) {
        return nb::make_tuple(c.changed, c.overflowed, c.zeroed, c.error, c.relative);
    };
    return nb::make_tuple(odd_words(each, &Counted::f16), odd_words(each, &Counted::bf16), of.values, zeros, of.below,
                          of.above, of.nans, of.positive_infinities, of.negative_infinities, of.largest, of.smallest,
                          cast(of.f16), cast(of.bf16), as_tuple(all.blocks));
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
    const std::size_t piece = std::max<std::size_t>(1, shared_out / block);
    share_out(marks.shape(0), piece, threads, [&](std::size_t, std::size_t first, std::size_t end) {
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
    const std::size_t piece = std::max<std::size_t>(1, shared_out / block);
    share_out(marks.shape(0), piece, threads, [&](std::size_t, std::size_t first, std::size_t end) {
        kernels.mark(x.data(), block, marks.data(), first, end);
    });
}

}  // namespace

void register_audit(nb::module_& m) {
    m.def("audit_isas", &audit_isas);
    m.def("audit_words", &audit_words, nb::arg("f16"), nb::arg("x"), nb::arg("scratch").noconvert(),
          nb::arg("histogram").noconvert(), nb::arg("blocks"), nb::arg("threads"), nb::arg("isa"));
    m.def("audit_floats", &audit_floats, nb::arg("x"), nb::arg("scratch").noconvert(), nb::arg("histogram").noconvert(), nb::arg("blocks"), nb::arg("threads"), nb::arg("isa"));
    m.def("mark_words", &mark_words, nb::arg("x"), nb::arg("flags"), nb::arg("block"), nb::arg("marks").noconvert(),
          nb::arg("threads"));
    m.def("mark_floats", &mark_floats, nb::arg("x"), nb::arg("block"), nb::arg("marks").noconvert(),
          nb::arg("threads"), nb::arg("isa"));
}
