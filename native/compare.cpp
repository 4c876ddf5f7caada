// Binding of the comparisons: shares tensors out to threads and adds up what they find.
#include "compare.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "module.hpp"

namespace nb = nanobind;
using bitloss::CompareKernels;
using bitloss::Distance;
using bitloss::FieldFormat;

namespace {

using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Values = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Marks = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

constexpr std::size_t most_bytes = 1U << 16;  // compared at once: what is equal is seen at the speed of memory
constexpr std::size_t most_values = 1U << 14;

struct Path {
    const char* name;
    CompareKernels (*kernels)();
    bool available;
};

std::vector<Path> paths() {
    return {
#if defined(__x86_64__)
        {"avx512", bitloss::compare_avx512,
         __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")},
        {"avx2", bitloss::compare_avx2, static_cast<bool>(__builtin_cpu_supports("avx2"))},
#endif
        {"portable", bitloss::compare_portable, true},
    };
}

CompareKernels pick(const std::string& isa) {
    for (const Path& path : paths())
        if (path.available && (isa == "auto" || isa == path.name)) return path.kernels();
    throw std::invalid_argument("instruction set not available: " + isa);
}

std::vector<std::string> compare_isas() {
    std::vector<std::string> names;
    for (const Path& path : paths())
        if (path.available) names.emplace_back(path.name);
    return names;
}

// Calls work(piece) for each of so many pieces, whichever thread comes to it.
template <class Work>
void share_out(std::size_t pieces, std::size_t threads, const Work& work) {
    if (threads == 0) throw std::invalid_argument("threads must be at least 1");
    std::atomic<std::size_t> next{0};
    const auto loop = [&] {
        for (std::size_t piece; (piece = next.fetch_add(1, std::memory_order_relaxed)) < pieces;) work(piece);
    };
    std::vector<std::jthread> others;
    for (std::size_t t = 1; t < std::min(threads, pieces); ++t) others.emplace_back(loop);
    loop();
}

template <class Word>
std::size_t mark_words(const std::uint8_t* a, const std::uint8_t* b, std::size_t n, std::uint8_t* marks) {
    std::size_t differing = 0;
    for (std::size_t i = 0; i < n; ++i) {
        Word x, y;
        std::memcpy(&x, a + i * sizeof(Word), sizeof(Word));
        std::memcpy(&y, b + i * sizeof(Word), sizeof(Word));
        marks[i] = x != y;
        differing += marks[i];
    }
    return differing;
}

std::size_t mark(const std::uint8_t* a, const std::uint8_t* b, std::size_t n, std::size_t block, std::uint8_t* marks) {
    if (std::memcmp(a, b, n * block) == 0) {
        std::memset(marks, 0, n);
        return 0;
    }
    if (block == 1) return mark_words<std::uint8_t>(a, b, n, marks);
    if (block == 2) return mark_words<std::uint16_t>(a, b, n, marks);
    if (block == 4) return mark_words<std::uint32_t>(a, b, n, marks);
    std::size_t differing = 0;
    for (std::size_t i = 0; i < n; ++i) {
        marks[i] = std::memcmp(a + i * block, b + i * block, block) != 0;
        differing += marks[i];
    }
    return differing;
}

// Returns how many blocks differ.
std::size_t differing_blocks(Bytes a, Bytes b, std::size_t block, Marks marks, std::size_t threads) {
    const std::size_t n = marks.shape(0);
    if (block == 0 || a.shape(0) != n * block || b.shape(0) != n * block)
        throw std::invalid_argument("differing_blocks: a mark for each block");
    const std::size_t share = std::max<std::size_t>(1, most_bytes / block);
    std::atomic<std::size_t> total{0};
    const nb::gil_scoped_release unlocked;
    share_out((n + share - 1) / share, threads, [&](std::size_t piece) {
        const std::size_t first = piece * share, count = std::min(share, n - first);
        total += mark(a.data() + first * block, b.data() + first * block, count, block, marks.data() + first);
    });
    return total;
}

const FieldFormat& find(int kind) {
    const bitloss::FieldFormats all = bitloss::field_formats();
    for (std::size_t i = 0; i < all.size; ++i)
        if (all.formats[i].kind == kind) return all.formats[i];
    throw std::invalid_argument("no quants and scales of type " + std::to_string(kind));
}

std::vector<int> field_kinds() {
    std::vector<int> kinds;
    const bitloss::FieldFormats all = bitloss::field_formats();
    for (std::size_t i = 0; i < all.size; ++i) kinds.push_back(all.formats[i].kind);
    return kinds;
}

std::size_t not_zero(const std::uint8_t* codes, std::size_t n) {
    std::size_t count = 0;
    for (std::size_t i = 0; i < n; ++i) count += codes[i] != 0;
    return count;
}

// Returns how many quants and how many scales differ.
std::pair<std::size_t, std::size_t> differing_fields(int kind, Bytes a, Bytes b, std::size_t threads) {
    const FieldFormat& format = find(kind);
    const std::size_t n = a.shape(0) / format.bytes;
    if (a.shape(0) % format.bytes != 0 || b.shape(0) != a.shape(0))
        throw std::invalid_argument("differing_fields: whole blocks, as many of each");
    const std::size_t share = std::max<std::size_t>(1, most_bytes / format.bytes);
    std::atomic<std::size_t> quants{0}, scales{0};
    const nb::gil_scoped_release unlocked;
    share_out((n + share - 1) / share, threads, [&](std::size_t piece) {
        std::uint8_t x[256], q[256] = {}, s[64] = {};  // no block has more
        std::size_t some_quants = 0, some_scales = 0;
        for (std::size_t at = piece * share; at < std::min(n, (piece + 1) * share); ++at) {
            const std::uint8_t *l = a.data() + at * format.bytes, *r = b.data() + at * format.bytes;
            for (std::size_t i = 0; i < format.bytes; ++i) x[i] = l[i] ^ r[i];
            format.codes(x, q, s);
            some_quants += not_zero(q, format.quants);
            some_scales += not_zero(s, format.scales);
        }
        quants += some_quants;
        scales += some_scales;
    });
    return {quants, scales};
}

void join(bitloss::Odd& into, const bitloss::Odd& from) {
    into.nan += from.nan;
    into.up += from.up;
    into.down += from.down;
}

// Returns what is in a Distance, in its order; see _native.pyi.
nb::tuple value_distance(Values a, Values b, std::size_t threads, const std::string& isa) {
    const CompareKernels kernels = pick(isa);
    const std::size_t n = a.shape(0);
    if (b.shape(0) != n) throw std::invalid_argument("value_distance: as many values of each");
    Distance all;
    {
        const nb::gil_scoped_release unlocked;
        std::vector<Distance> each((n + most_values - 1) / most_values);
        share_out(each.size(), threads, [&](std::size_t piece) {
            const std::size_t first = piece * most_values;
            kernels.distance(a.data() + first, b.data() + first, std::min(most_values, n - first), each[piece]);
        });
        for (const Distance& one : each) {  // in their order, whichever thread made them
            all.differing += one.differing;
            all.left_out += one.left_out;
            all.squares += one.squares;
            all.largest = std::max(all.largest, one.largest);
            join(all.a, one.a);
            join(all.b, one.b);
        }
    }
    const auto odd = [](const bitloss::Odd& o) { return nb::make_tuple(o.nan, o.up, o.down); };
    return nb::make_tuple(all.differing, all.left_out, all.squares, all.largest, odd(all.a), odd(all.b));
}

}  // namespace

void register_compare(nb::module_& m) {
    m.def("compare_isas", &compare_isas);
    m.def("differing_blocks", &differing_blocks, nb::arg("a"), nb::arg("b"), nb::arg("block"),
          nb::arg("marks").noconvert(), nb::arg("threads"));
    m.def("field_kinds", &field_kinds);
    m.def("differing_fields", &differing_fields, nb::arg("kind"), nb::arg("a"), nb::arg("b"), nb::arg("threads"));
    m.def("value_distance", &value_distance, nb::arg("a"), nb::arg("b"), nb::arg("threads"), nb::arg("isa"));
}
