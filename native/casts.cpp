// Binding of the casts.
#include "casts.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "module.hpp"

namespace nb = nanobind;
using bitloss::CastCounts;
using bitloss::CastKernels;
using bitloss::float_types;

namespace {

using In = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Out = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Counts = std::tuple<std::uint64_t, std::uint64_t, std::uint64_t, std::uint64_t>;

constexpr std::size_t widths[float_types] = {4, 2, 2};

struct Path {
    const char* name;
    CastKernels (*kernels)();
    bool available;
};

// Best first; "wide" is never best: it shows on a machine without AVX-512 what its lanes compute.
std::vector<Path> paths() {
    return {
#if defined(__x86_64__)
        {"avx512", bitloss::casts_avx512,
         __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")},
        {"avx2", bitloss::casts_avx2, static_cast<bool>(__builtin_cpu_supports("avx2"))},
#endif
        {"portable", bitloss::casts_portable, true},
#if defined(__x86_64__)
        {"wide", bitloss::casts_wide, static_cast<bool>(__builtin_cpu_supports("avx2"))},
#endif
    };
}

CastKernels pick(const std::string& isa) {
    for (const Path& path : paths())
        if (path.available && (isa == "auto" || isa == path.name)) return path.kernels();
    throw std::invalid_argument("instruction set not available: " + isa);
}

std::vector<std::string> cast_isas() {
    std::vector<std::string> names;
    for (const Path& path : paths())
        if (path.available) names.emplace_back(path.name);
    return names;
}

Counts cast_values(int from, int to, In values, Out out, const std::string& isa) {
    if (from < 0 || from >= float_types || to < 0 || to >= float_types)
        throw std::invalid_argument("cast_values: types are 0 (F32), 1 (F16), 2 (BF16)");
    const std::size_t n = values.shape(0) / widths[from];
    if (values.shape(0) != n * widths[from] || out.shape(0) != n * widths[to])
        throw std::invalid_argument("cast_values: as many values out as in");
    const CastKernels kernels = pick(isa);
    CastCounts counts;
    {
        const nb::gil_scoped_release unlocked;
        kernels.of[from][to](values.data(), out.data(), n, counts);
    }
    return {counts.not_finite, counts.changed, counts.overflowed, counts.zeroed};
}

}  // namespace

void register_casts(nb::module_& m) {
    m.def("cast_isas", &cast_isas);
    m.def("cast_values", &cast_values, nb::arg("source"), nb::arg("target"), nb::arg("values"),
          nb::arg("out").noconvert(), nb::arg("isa"));
}
