#pragma once
// Arrays as Python hands them over: contiguous, on the CPU, of one type and number of dimensions.
#include <nanobind/ndarray.h>

namespace bitloss {

template <typename T, int Dims>
using In = nanobind::ndarray<const T, nanobind::ndim<Dims>, nanobind::c_contig, nanobind::device::cpu>;
template <typename T, int Dims>
using Out = nanobind::ndarray<T, nanobind::ndim<Dims>, nanobind::c_contig, nanobind::device::cpu>;

}  // namespace bitloss
