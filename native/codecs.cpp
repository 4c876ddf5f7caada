// Binding of the codecs: picks a table, checks sizes, shares blocks out to threads.
#include "codec.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "arrays.hpp"
#include "module.hpp"

namespace nb = nanobind;

namespace {

using bitloss::In;
using bitloss::Out;

struct Path {
    const char* name;
    bitloss::CodecTable (*table)();
    bool available;
};

// Best first; "wide" is never best: it shows on a machine without AVX-512 what its lanes compute.
std::vector<Path> paths() {
    return {
#if defined(__x86_64__)
        {"avx512", bitloss::codecs_avx512,
         __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")},
        {"avx2", bitloss::codecs_avx2, static_cast<bool>(__builtin_cpu_supports("avx2"))},
#endif
        {"portable", bitloss::codecs_portable, true},
#if defined(__x86_64__)
        {"wide", bitloss::codecs_wide, static_cast<bool>(__builtin_cpu_supports("avx2"))},
#endif
    };
}

bitloss::CodecTable pick(const std::string& isa) {
    for (const Path& path : paths())
        if (path.available && (isa == "auto" || isa == path.name)) return path.table();
    throw std::invalid_argument("instruction set not available: " + isa);
}

const bitloss::Codec& find(const bitloss::CodecTable& table, int kind) {
    for (std::size_t i = 0; i < table.size; ++i)
        if (table.codecs[i].kind == kind) return table.codecs[i];
    throw std::invalid_argument("no kernel for type " + std::to_string(kind));
}

std::vector<std::string> codec_isas() {
    std::vector<std::string> names;
    for (const Path& path : paths())
        if (path.available) names.emplace_back(path.name);
    return names;
}

// Types with a kernel for encoding or for decoding.
std::vector<int> codec_kinds(bool encoding) {
    std::vector<int> kinds;
    const bitloss::CodecTable table = bitloss::codecs_portable();
    for (std::size_t i = 0; i < table.size; ++i)
        if (encoding ? table.codecs[i].encode != nullptr : table.codecs[i].decode != nullptr)
            kinds.push_back(table.codecs[i].kind);
    return kinds;
}

// Runs `work(first, end)` over [0, blocks); blocks are independent, so which thread takes which does not matter.
template <typename Work>
void for_blocks(std::size_t blocks, std::size_t lanes, std::size_t threads, const Work& work) {
    threads = std::max<std::size_t>(1, threads);
    // Several pieces a thread, so that one that is held up does not hold up all.
    const std::size_t share = blocks / (threads * 8) / lanes * lanes;
    const std::size_t piece = threads == 1 ? std::max<std::size_t>(1, blocks) : std::max(share, 4 * lanes);
    std::atomic<std::size_t> next{0};
    const auto loop = [&] {
        for (std::size_t first; (first = next.fetch_add(piece, std::memory_order_relaxed)) < blocks;)
            work(first, std::min(first + piece, blocks));
    };
    std::vector<std::jthread> helpers;
    for (std::size_t i = 1; i < threads && i * piece < blocks; ++i) helpers.emplace_back(loop);
    loop();
}

void encode_rows(int kind, In<float, 2> rows, std::optional<In<float, 1>> weights, Out<std::uint8_t, 2> out,
                 std::size_t threads, const std::string& isa) {
    const bitloss::CodecTable table = pick(isa);
    const bitloss::Codec& codec = find(table, kind);
    const std::size_t n_rows = rows.shape(0), n_per_row = rows.shape(1), in_row = n_per_row / codec.block;
    if (n_per_row % codec.block != 0 || out.shape(0) != n_rows || out.shape(1) != in_row * codec.bytes ||
        (weights && weights->shape(0) != n_per_row))
        throw std::invalid_argument("encode_rows: shapes do not fit together");
    if (codec.encode == nullptr) throw std::invalid_argument("no kernel for type " + std::to_string(kind));
    const bitloss::EncodeJob job{rows.data(), weights ? weights->data() : nullptr, in_row, out.data()};
    const nb::gil_scoped_release unlocked;
    for_blocks(n_rows * in_row, table.lanes, threads,
               [&](std::size_t first, std::size_t end) { codec.encode(job, first, end); });
}

void decode_rows(int kind, In<std::uint8_t, 2> data, Out<float, 2> out, std::size_t threads, const std::string& isa) {
    const bitloss::CodecTable table = pick(isa);
    const bitloss::Codec& codec = find(table, kind);
    const std::size_t n_rows = out.shape(0), n_per_row = out.shape(1), in_row = n_per_row / codec.block;
    if (n_per_row % codec.block != 0 || data.shape(0) != n_rows || data.shape(1) != in_row * codec.bytes)
        throw std::invalid_argument("decode_rows: shapes do not fit together");
    if (codec.decode == nullptr) throw std::invalid_argument("no kernel for type " + std::to_string(kind));
    const bitloss::DecodeJob job{data.data(), out.data()};
    const nb::gil_scoped_release unlocked;
    for_blocks(n_rows * in_row, table.lanes, threads,
               [&](std::size_t first, std::size_t end) { codec.decode(job, first, end); });
}

}  // namespace

void register_codecs(nb::module_& m) {
    m.def("codec_isas", &codec_isas);
    m.def("codec_kinds", &codec_kinds, nb::arg("encoding"));
    m.def("encode_rows", &encode_rows, nb::arg("kind"), nb::arg("rows"), nb::arg("weights").none(),
          nb::arg("out").noconvert(), nb::arg("threads"), nb::arg("isa"));
    m.def("decode_rows", &decode_rows, nb::arg("kind"), nb::arg("data"), nb::arg("out").noconvert(),
          nb::arg("threads"), nb::arg("isa"));
}
