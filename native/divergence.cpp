// Binding of the divergence kernels: picks a path, shares rows out to threads, scatters into columns.
#include "divergence.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <memory>
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
    bitloss::RowKernel kernel;
    bool available;
};

// Best first.
std::vector<Path> paths() {
    return {
#if defined(__x86_64__)
        {"avx512", bitloss::row_avx512,
         __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")},
        {"avx2", bitloss::row_avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
#endif
        {"portable", bitloss::row_portable, true},
    };
}

bitloss::RowKernel pick(const std::string& isa) {
    for (const Path& path : paths())
        if (path.available && (isa == "auto" || isa == path.name)) return path.kernel;
    throw std::invalid_argument("instruction set not available: " + isa);
}

std::vector<std::string> divergence_isas() {
    std::vector<std::string> names;
    for (const Path& path : paths())
        if (path.available) names.emplace_back(path.name);
    return names;
}

// Runs `work(row, scratch)` for every row; rows are independent, so their order does not matter.
template <typename Work>
void for_rows(std::size_t rows, std::size_t threads, std::size_t scratch, const Work& work) {
    std::atomic<std::size_t> next{0};
    const auto loop = [&] {
        const std::unique_ptr<float[]> own(new float[scratch]);  // not touched, so not there, but where it is used
        for (std::size_t row; (row = next.fetch_add(1, std::memory_order_relaxed)) < rows;) work(row, own.get());
    };
    std::vector<std::jthread> helpers;
    for (std::size_t i = 1; i < threads && i < rows; ++i) helpers.emplace_back(loop);
    loop();
}

void divergence_rows(In<float, 2> base, In<float, 2> cand, In<std::int32_t, 1> targets, Out<double, 2> values,
                     Out<float, 2> overlaps, Out<std::uint8_t, 2> flags, std::size_t threads, const std::string& isa) {
    const std::size_t rows = base.shape(0), n_vocab = base.shape(1);
    if (cand.shape(0) != rows || cand.shape(1) != n_vocab || targets.shape(0) != rows || values.shape(0) != 9 ||
        values.shape(1) != rows || overlaps.shape(0) != 2 || overlaps.shape(1) != rows || flags.shape(0) != 2 ||
        flags.shape(1) != rows)
        throw std::invalid_argument("divergence_rows: shapes do not fit together");
    for (std::size_t row = 0; row < rows; ++row)
        if (targets.data()[row] < 0 || static_cast<std::size_t>(targets.data()[row]) >= n_vocab)
            throw std::invalid_argument("divergence_rows: target outside the vocabulary");
    const bitloss::RowKernel kernel = pick(isa);
    const nb::gil_scoped_release unlocked;
    for_rows(rows, threads, bitloss::scratch_floats(n_vocab), [&](std::size_t row, float* scratch) {
        const bitloss::RowMetrics m = kernel(base.data() + row * n_vocab, cand.data() + row * n_vocab, n_vocab,
                                             static_cast<std::size_t>(targets.data()[row]), scratch);
        const double columns[] = {m.nll_base, m.nll, m.kld, m.kld_reverse, m.js, m.p_base, m.p, m.entropy_base, m.entropy};
        for (std::size_t i = 0; i < 9; ++i) values.data()[i * rows + row] = columns[i];
        overlaps.data()[row] = m.top5_overlap;
        overlaps.data()[rows + row] = m.top10_overlap;
        flags.data()[row] = m.same_top;
        flags.data()[rows + row] = m.nonfinite;
    });
}

}  // namespace

void register_divergence(nb::module_& m) {
    m.def("divergence_isas", &divergence_isas);
    m.def("divergence_rows", &divergence_rows, nb::arg("base"), nb::arg("cand"), nb::arg("targets"),
          nb::arg("values").noconvert(), nb::arg("overlaps").noconvert(), nb::arg("flags").noconvert(),
          nb::arg("threads"), nb::arg("isa"));
}
