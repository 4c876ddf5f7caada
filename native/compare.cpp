// Binding of the comparisons: shares tensors out to threads and adds up what they find.
#include "codec.hpp"
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
constexpr std::size_t most_values = 1U << 16;
constexpr std::size_t few_values = 1U << 11;  // decoded at once: both files' stay in the first-level cache

struct Kernels {
    CompareKernels compare;
    bitloss::CodecTable codecs;
};

struct Path {
    const char* name;
    CompareKernels (*kernels)();
    bitloss::CodecTable (*codecs)();
    bool available;
};

std::vector<Path> paths() {
    return {
#if defined(__x86_64__)
        {"avx512", bitloss::compare_avx512, bitloss::codecs_avx512,
         __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")},
        {"avx2", bitloss::compare_avx2, bitloss::codecs_avx2, static_cast<bool>(__builtin_cpu_supports("avx2"))},
#endif
        {"portable", bitloss::compare_portable, bitloss::codecs_portable, true},
    };
}

Kernels pick(const std::string& isa) {
    for (const Path& path : paths())
        if (path.available && (isa == "auto" || isa == path.name)) return {path.kernels(), path.codecs()};
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

const FieldFormat* format_of(int kind, const CompareKernels& kernels) {
    for (std::size_t i = 0; i < kernels.n_formats; ++i)
        if (kernels.formats[i].kind == kind) return &kernels.formats[i];
    return nullptr;
}

std::vector<int> field_kinds() {
    std::vector<int> kinds;
    const CompareKernels kernels = bitloss::compare_portable();
    for (std::size_t i = 0; i < kernels.n_formats; ++i) kinds.push_back(kernels.formats[i].kind);
    return kinds;
}

// Returns how many quants and how many scales differ.
std::pair<std::uint64_t, std::uint64_t> differing_fields(int kind, Bytes a, Bytes b, const std::string& isa) {
    const FieldFormat* format = format_of(kind, pick(isa).compare);
    if (format == nullptr) throw std::invalid_argument("no quants and scales of type " + std::to_string(kind));
    if (a.shape(0) % format->bytes != 0 || b.shape(0) != a.shape(0))
        throw std::invalid_argument("differing_fields: whole blocks, as many of each");
    const nb::gil_scoped_release unlocked;
    std::uint64_t quants = 0, scales = 0;
    format->count(a.data(), b.data(), a.shape(0) / format->bytes, quants, scales);
    return {quants, scales};
}

void join(bitloss::Odd& into, const bitloss::Odd& from) {
    into.nan += from.nan;
    into.up += from.up;
    into.down += from.down;
}

void join(Distance& into, const Distance& from) {
    into.differing += from.differing;
    into.left_out += from.left_out;
    into.squares += from.squares;
    into.largest = std::max(into.largest, from.largest);
    join(into.a, from.a);
    join(into.b, from.b);
}

// Returns what is in a Distance, in its order; see _native.pyi.
nb::tuple as_tuple(const Distance& all) {
    const auto odd = [](const bitloss::Odd& o) { return nb::make_tuple(o.nan, o.up, o.down); };
    return nb::make_tuple(all.differing, all.left_out, all.squares, all.largest, odd(all.a), odd(all.b));
}

// One of two tensors: values of a type that is decoded here.
class Stored {
  public:
    Stored(int kind, const Bytes& data, const bitloss::CodecTable& codecs) : data_(data.data()) {
        for (std::size_t i = 0; i < codecs.size && kind != 0; ++i)
            if (codecs.codecs[i].kind == kind) codec_ = &codecs.codecs[i];
        if (kind != 0 && (codec_ == nullptr || codec_->decode == nullptr))
            throw std::invalid_argument("no kernel for type " + std::to_string(kind));
        if (data.shape(0) % bytes() != 0) throw std::invalid_argument("compare_tensors: whole blocks");
        values_ = data.shape(0) / bytes() * block();
    }
    std::size_t block() const { return codec_ == nullptr ? 1 : codec_->block; }
    std::size_t bytes() const { return codec_ == nullptr ? 4 : codec_->bytes; }
    std::size_t values() const { return values_; }
    const std::uint8_t* at(std::size_t value) const { return data_ + value / block() * bytes(); }

    // n values from `first` on, in `buffer` or where they are.
    const float* decoded(std::size_t first, std::size_t n, float* buffer) const {
        if (codec_ != nullptr)
            codec_->decode({at(first), buffer}, 0, n / codec_->block);
        else if (reinterpret_cast<std::uintptr_t>(data_) % alignof(float) == 0)
            return reinterpret_cast<const float*>(at(first));
        else
            std::memcpy(buffer, at(first), 4 * n);  // a file need not align them
        return buffer;
    }

  private:
    const std::uint8_t* data_;
    const bitloss::Codec* codec_ = nullptr;
    std::size_t values_ = 0;
};

struct Compared {
    std::uint64_t blocks = 0, quants = 0, scales = 0;
    Distance distance;
};

// Blocks of one type: how many differ, and in what.
void compare_blocks(const std::uint8_t* a, const std::uint8_t* b, std::size_t n, std::size_t bytes,
                    const CompareKernels& kernels, const FieldFormat* format, Compared& into) {
    if (bytes <= 4) {
        into.blocks += kernels.words(a, b, n, bytes);
        return;
    }
    if (format != nullptr) {
        into.blocks += format->count(a, b, n, into.quants, into.scales);
        return;
    }
    for (std::size_t i = 0; i < n; ++i) into.blocks += std::memcmp(a + i * bytes, b + i * bytes, bytes) != 0;
}

// Compares as many values of each; of one type those in equal pieces are passed over. Returns (differing blocks, quants
// and scales, all 0 for two types; the distance).
nb::tuple compare_tensors(int kind_a, Bytes a, int kind_b, Bytes b, std::size_t threads, const std::string& isa) {
    const Kernels kernels = pick(isa);
    const Stored left(kind_a, a, kernels.codecs), right(kind_b, b, kernels.codecs);
    const std::size_t n = left.values();
    if (right.values() != n) throw std::invalid_argument("compare_tensors: as many values of each");
    const bool one_type = kind_a == kind_b;
    const FieldFormat* format = one_type ? format_of(kind_a, kernels.compare) : nullptr;
    Compared all;
    {
        const nb::gil_scoped_release unlocked;
        std::vector<Compared> each((n + most_values - 1) / most_values);
        share_out(each.size(), threads, [&](std::size_t piece) {
            float x[few_values], y[few_values];
            Compared own;
            const std::size_t end = std::min(n, (piece + 1) * most_values);
            for (std::size_t at = piece * most_values; at < end; at += few_values) {
                const std::size_t count = std::min(few_values, end - at);
                if (one_type) {
                    const std::size_t blocks = count / left.block();
                    if (std::memcmp(left.at(at), right.at(at), blocks * left.bytes()) == 0) continue;
                    compare_blocks(left.at(at), right.at(at), blocks, left.bytes(), kernels.compare, format, own);
                }
                kernels.compare.distance(left.decoded(at, count, x), right.decoded(at, count, y), count, own.distance);
            }
            each[piece] = own;
        });
        for (const Compared& one : each) {  // in their order, whichever thread made them
            all.blocks += one.blocks;
            all.quants += one.quants;
            all.scales += one.scales;
            join(all.distance, one.distance);
        }
    }
    return nb::make_tuple(all.blocks, all.quants, all.scales, as_tuple(all.distance));
}

nb::tuple value_distance(Values a, Values b, std::size_t threads, const std::string& isa) {
    const Kernels kernels = pick(isa);
    const std::size_t n = a.shape(0);
    if (b.shape(0) != n) throw std::invalid_argument("value_distance: as many values of each");
    Distance all;
    {
        const nb::gil_scoped_release unlocked;
        std::vector<Distance> each((n + most_values - 1) / most_values);
        share_out(each.size(), threads, [&](std::size_t piece) {
            const std::size_t first = piece * most_values;
            kernels.compare.distance(a.data() + first, b.data() + first, std::min(most_values, n - first), each[piece]);
        });
        for (const Distance& one : each) join(all, one);
    }
    return as_tuple(all);
}

}  // namespace

void register_compare(nb::module_& m) {
    m.def("compare_isas", &compare_isas);
    m.def("differing_blocks", &differing_blocks, nb::arg("a"), nb::arg("b"), nb::arg("block"),
          nb::arg("marks").noconvert(), nb::arg("threads"));
    m.def("field_kinds", &field_kinds);
    m.def("differing_fields", &differing_fields, nb::arg("kind"), nb::arg("a"), nb::arg("b"), nb::arg("isa"));
    m.def("compare_tensors", &compare_tensors, nb::arg("kind_a"), nb::arg("a"), nb::arg("kind_b"), nb::arg("b"),
          nb::arg("threads"), nb::arg("isa"));
    m.def("value_distance", &value_distance, nb::arg("a"), nb::arg("b"), nb::arg("threads"), nb::arg("isa"));
}
