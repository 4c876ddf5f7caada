// Binding of the product: checks shapes, shares the weight's rows out to threads.
#include "product.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "module.hpp"

namespace nb = nanobind;
using bitloss::ProductJob;
using bitloss::WeightType;

namespace {

template <typename T, int Dims>
using In = nb::ndarray<const T, nb::ndim<Dims>, nb::c_contig, nb::device::cpu>;
using Out = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

constexpr std::size_t stretch = 64;  // weight rows a thread takes at a time

struct Path {
    std::size_t lanes;
    bitloss::ProductKernel kernel;
    bitloss::PackKernel pack;
    bool available;
};

std::vector<Path> paths() {
    return {
#if defined(__x86_64__)
        {16, bitloss::product_avx512, bitloss::pack_avx512, static_cast<bool>(__builtin_cpu_supports("avx512f"))},
        {8, bitloss::product_avx2, bitloss::pack_avx2,
         __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")},
#endif
    };
}

std::vector<std::size_t> product_lanes() {
    std::vector<std::size_t> found;
    for (const Path& path : paths())
        if (path.available) found.push_back(path.lanes);
    return found;
}

void product_rows(In<std::uint8_t, 1> weights, int type, In<float, 2> x, Out out, std::size_t lanes,
                  std::size_t threads) {
    const std::size_t rows = x.shape(0), width = x.shape(1), n_out = out.shape(1);
    if (type != static_cast<int>(WeightType::f32) && type != static_cast<int>(WeightType::f16))
        throw std::invalid_argument("product_rows: types are 0 (F32) and 1 (F16)");
    const std::size_t bytes = type == static_cast<int>(WeightType::f32) ? 4 : 2;
    if (out.shape(0) != rows || weights.shape(0) != n_out * width * bytes)
        throw std::invalid_argument("product_rows: shapes do not fit together");
    if (n_out % 4 != 0 || lanes == 0 || width % lanes != 0)
        throw std::invalid_argument("product_rows: a multiple of 4 results, of whole vectors");
    const Path* found = nullptr;
    const std::vector<Path> all = paths();
    for (const Path& path : all)
        if (path.available && path.lanes == lanes) found = &path;
    if (found == nullptr) throw std::invalid_argument("product_rows: no kernel of so many lanes here");
    const nb::gil_scoped_release unlocked;
    std::vector<float> packed(rows * width);
    found->pack(x.data(), packed.data(), rows, width);
    const std::size_t stretches = (n_out + stretch - 1) / stretch;
    std::atomic<std::size_t> next{0};
    const auto loop = [&] {
        std::vector<float> room(16 * width);
        for (std::size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < stretches;)
            found->kernel(ProductJob{weights.data(), static_cast<WeightType>(type), packed.data(), out.data(), n_out, width, rows,
                              i * stretch, std::min(n_out, (i + 1) * stretch), room.data()});
    };
    std::vector<std::jthread> helpers;
    for (std::size_t i = 1; i < threads && i < stretches; ++i) helpers.emplace_back(loop);
    loop();
}

}  // namespace

void register_product(nb::module_& m) {
    m.def("product_lanes", &product_lanes);
    m.def("product_rows", &product_rows, nb::arg("weights"), nb::arg("type"), nb::arg("x"),
          nb::arg("out").noconvert(), nb::arg("lanes"), nb::arg("threads"));
}
