// Where the strings of a GGUF array stand: a vocabulary of 131,072 tokens and its merges in a millisecond.
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "arrays.hpp"
#include "module.hpp"

namespace nb = nanobind;

namespace {

using bitloss::In;
using bitloss::Out;

// From `at` on: a little-endian u64 length, so many bytes, and again. Returns how many strings were found whole, as many
// as `starts` has room for, and where the next one begins.
std::pair<std::size_t, std::size_t> find_strings(In<std::uint8_t, 1> data, std::size_t at, Out<std::int64_t, 1> starts,
                                                 Out<std::int64_t, 1> ends) {
    const std::size_t size = data.shape(0), count = starts.shape(0);
    if (ends.shape(0) != count || at > size) throw std::invalid_argument("find_strings: places do not fit together");
    std::size_t found = 0;
    for (; found < count && size - at >= 8; ++found) {
        std::uint64_t length;
        std::memcpy(&length, data.data() + at, 8);
        if (length > size - at - 8) break;
        starts.data()[found] = static_cast<std::int64_t>(at + 8);
        at += 8 + length;
        ends.data()[found] = static_cast<std::int64_t>(at);
    }
    return {found, at};
}

}  // namespace

void register_strings(nb::module_& m) {
    m.def("find_strings", &find_strings, nb::arg("data"), nb::arg("at"), nb::arg("starts").noconvert(),
          nb::arg("ends").noconvert());
}
