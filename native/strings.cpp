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

// The strings of an array that is known to hold `count`, what is not UTF-8 in them as \xNN: a loop in Python takes ten
// times as long, a quarter of a second in every process that opens a file with such a vocabulary.
nb::list decode_strings(nb::bytes raw, std::size_t count) {
    const char* data = raw.c_str();
    const std::size_t size = raw.size();
    nb::list strings;
    for (std::size_t at = 0; count > 0; --count) {
        std::uint64_t length;
        if (size - at < 8) throw std::invalid_argument("decode_strings: fewer strings than said");
        std::memcpy(&length, data + at, 8);
        at += 8;
        if (length > size - at) throw std::invalid_argument("decode_strings: a string is cut off");
        PyObject* text = PyUnicode_DecodeUTF8(data + at, static_cast<Py_ssize_t>(length), "backslashreplace");
        if (text == nullptr) throw nb::python_error();
        strings.append(nb::steal(text));
        at += length;
    }
    return strings;
}

}  // namespace

void register_strings(nb::module_& m) {
    m.def("decode_strings", &decode_strings, nb::arg("raw"), nb::arg("count"));
    m.def("find_strings", &find_strings, nb::arg("data"), nb::arg("at"), nb::arg("starts").noconvert(),
          nb::arg("ends").noconvert());
}
