// Binding of the product: checks shapes, shares the weight's rows out to threads.
#include "product.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
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

struct alignas(64) Line {  // of the cache: a vector then never lies on two
    std::byte bytes[64];
};

std::vector<Line> lines(std::size_t bytes) { return std::vector<Line>((bytes + sizeof(Line) - 1) / sizeof(Line)); }

// A way of taking the sums; see product.hpp.
struct Way {
    std::string name;
    std::vector<WeightType> types;
    std::size_t width, n_out;  // what these must be multiples of
    bitloss::ProductKernel kernel;
    bitloss::PackKernel pack;
    bool available;
};

#if defined(__x86_64__)
bool vnni() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("f16c");
}
#endif

std::vector<Way> offered() {
    std::vector<Way> all = {
#if defined(__x86_64__)
        {"q8_0", {WeightType::q8_0}, 32, 1, bitloss::product_q8_0, bitloss::pack_q8_0, vnni()},
        {"q6_k", {WeightType::q6_k}, 256, 1, bitloss::product_q6_k, bitloss::pack_q6_k, vnni()},
        {"fused-pairs", {WeightType::bf16}, 32, 4, bitloss::product_fused_pairs, bitloss::pack_fused_pairs,
         static_cast<bool>(__builtin_cpu_supports("avx512bf16"))},
        {"pairs", {WeightType::bf16}, 32, 4, bitloss::product_pairs, bitloss::pack_pairs,
         static_cast<bool>(__builtin_cpu_supports("avx512bf16"))},
        {"avx512", {WeightType::f32, WeightType::f16, WeightType::bf16}, 16, 4, bitloss::product_avx512,
         bitloss::pack_avx512, static_cast<bool>(__builtin_cpu_supports("avx512f"))},
        {"avx2", {WeightType::f32, WeightType::f16, WeightType::bf16}, 8, 4, bitloss::product_avx2, bitloss::pack_avx2,
         __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")},
#endif
    };
#if defined(__x86_64__)
    // AMD's are as fast with the instruction as with any other
    if (__builtin_cpu_is("amd")) std::swap(all[2], all[3]);
#endif
    return all;
}

const std::vector<Way>& ways() {
    static const std::vector<Way> all = offered();
    return all;
}

bool fits(const Way& way, int type, std::size_t width, std::size_t n_out) {
    const bool known = std::any_of(way.types.begin(), way.types.end(),
                                   [&](WeightType each) { return static_cast<int>(each) == type; });
    return way.available && known && width > 0 && width % way.width == 0 && n_out > 0 && n_out % way.n_out == 0;
}

std::vector<std::string> product_ways(int type, std::size_t width, std::size_t n_out) {
    std::vector<std::string> found;
    for (const Way& way : ways())
        if (fits(way, type, width, n_out)) found.push_back(way.name);
    return found;
}

std::size_t row_bytes(WeightType type, std::size_t width) {
    switch (type) {
        case WeightType::f32: return width * 4;
        case WeightType::q8_0: return width / 32 * 34;
        case WeightType::q6_k: return width / 256 * 210;
        default: return width * 2;
    }
}

void product_rows(In<std::uint8_t, 1> weights, int type, In<float, 2> x, Out out, const std::string& name,
                  std::size_t threads) {
    const std::size_t rows = x.shape(0), width = x.shape(1), n_out = out.shape(1);
    const Way* way = nullptr;
    for (const Way& each : ways())
        if (each.name == name && fits(each, type, width, n_out)) way = &each;
    if (way == nullptr) throw std::invalid_argument("product_rows: not one of the ways for this type and shape");
    const auto kind = static_cast<WeightType>(type);
    if (out.shape(0) != rows || weights.shape(0) != n_out * row_bytes(kind, width))
        throw std::invalid_argument("product_rows: shapes do not fit together");
    if (rows == 0) return;
    const nb::gil_scoped_release unlocked;
    std::vector<Line> packed = lines(rows * bitloss::product_packed(width));
    way->pack(x.data(), packed.data(), rows, width);
    const std::size_t stretches = (n_out + stretch - 1) / stretch;
    std::atomic<std::size_t> next{0};
    // made here: what a helper throws would end the process
    std::vector<std::vector<Line>> rooms(std::max<std::size_t>(1, std::min(threads, stretches)),
                                         lines(bitloss::product_room(width)));
    const auto loop = [&](std::vector<Line>& room) {
        for (std::size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < stretches;)
            way->kernel(ProductJob{weights.data(), kind, packed.data(), out.data(), n_out, width, rows, i * stretch,
                                   std::min(n_out, (i + 1) * stretch), room.data()});
    };
    std::vector<std::jthread> helpers;
    for (std::size_t i = 1; i < rooms.size(); ++i) helpers.emplace_back(loop, std::ref(rooms[i]));
    loop(rooms[0]);
}

}  // namespace

void register_product(nb::module_& m) {
    m.def("product_ways", &product_ways, nb::arg("type"), nb::arg("width"), nb::arg("n_out"));
    m.def("product_rows", &product_rows, nb::arg("weights"), nb::arg("type"), nb::arg("x"),
          nb::arg("out").noconvert(), nb::arg("way"), nb::arg("threads"));
}
