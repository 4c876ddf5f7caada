// Sums of squares for importance matrices: float32 activations, float64 sums, rows added in order.
#include <nanobind/ndarray.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>

#include "arrays.hpp"
#include "module.hpp"

namespace nb = nanobind;

namespace {

using bitloss::In;
using bitloss::Out;

// Element-wise, so the compiler's vector code gives the same sums on every machine.
void add_row(double* __restrict acc, const float* __restrict x, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) {
        const double v = x[i];
        acc[i] += v * v;
    }
}

void add_squares(Out<double, 1> acc, In<float, 2> x) {
    const std::size_t rows = x.shape(0), n = x.shape(1);
    if (acc.shape(0) != n) throw std::invalid_argument("add_squares: acc and x differ in width");
    const nb::gil_scoped_release unlocked;
    for (std::size_t row = 0; row < rows; ++row) add_row(acc.data(), x.data() + row * n, n);
}

void add_squares_rows(Out<double, 2> acc, In<float, 2> x, In<std::int32_t, 1> ids) {
    const std::size_t rows = x.shape(0), n = x.shape(1), n_mat = acc.shape(0);
    if (acc.shape(1) != n || ids.shape(0) != rows)
        throw std::invalid_argument("add_squares_rows: acc, x and ids do not fit together");
    for (std::size_t row = 0; row < rows; ++row)
        if (ids.data()[row] < 0 || static_cast<std::size_t>(ids.data()[row]) >= n_mat)
            throw std::invalid_argument("add_squares_rows: id outside acc");
    const nb::gil_scoped_release unlocked;
    for (std::size_t row = 0; row < rows; ++row)
        add_row(acc.data() + static_cast<std::size_t>(ids.data()[row]) * n, x.data() + row * n, n);
}

}  // namespace

void register_squares(nb::module_& m) {
    m.def("add_squares", &add_squares, nb::arg("acc").noconvert(), nb::arg("x").noconvert());
    m.def("add_squares_rows", &add_squares_rows, nb::arg("acc").noconvert(), nb::arg("x").noconvert(),
          nb::arg("ids").noconvert());
}
