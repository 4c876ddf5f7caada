// ggml_quantize_chunk, called so that a failed assertion of ggml ends the call and not the process.
//
// Encoders of the codebook types give up on values whose squares leave the range of float32 (GGML_ASSERT, GGML_ABORT).
// ggml tells its abort callback first; ours leaves for the call by longjmp. Between the two are frames of C only, which
// hold neither locks nor memory: the tables are made before, by ggml_quantize_init.
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>

#include "arrays.hpp"
#include "module.hpp"

namespace nb = nanobind;

namespace {

using bitloss::In;
using bitloss::Out;

using AbortCallback = void (*)(const char*);
using SetAbortCallback = AbortCallback (*)(AbortCallback);
using QuantizeChunk = std::size_t (*)(int, const float*, void*, std::int64_t, std::int64_t, std::int64_t, const float*);

struct Guard {
    std::jmp_buf back;
    char message[512];
};

thread_local Guard* guard = nullptr;  // of the call under way on this thread
AbortCallback before = nullptr;

// What ggml does otherwise is kept for all its other callers: it says why, and ends the process.
void on_abort(const char* message) {
    if (guard != nullptr) {
        std::strncpy(guard->message, message, sizeof guard->message - 1);
        std::longjmp(guard->back, 1);
    }
    if (before != nullptr)
        before(message);
    else
        std::fprintf(stderr, "%s\n", message);
}

struct Chunk {
    QuantizeChunk quantize;
    int kind;
    const float* rows;
    const float* weights;
    void* out;
    std::int64_t n_rows, n_per_row;
};

// Nothing in this frame needs to be destroyed, and nothing changes between setjmp and longjmp.
bool run(const Chunk& chunk, Guard& own) {
    guard = &own;
    const bool finished = setjmp(own.back) == 0;
    if (finished) chunk.quantize(chunk.kind, chunk.rows, chunk.out, 0, chunk.n_rows, chunk.n_per_row, chunk.weights);
    guard = nullptr;
    return finished;
}

// The addresses are those of the library that is loaded: quantize_chunk and set_abort_callback.
std::optional<std::string> encode_chunk(std::uintptr_t quantize_chunk, std::uintptr_t set_abort_callback, int kind,
                                        In<float, 2> rows, std::optional<In<float, 1>> weights,
                                        Out<std::uint8_t, 2> out) {
    if (out.shape(0) != rows.shape(0) || (weights && weights->shape(0) != rows.shape(1)))
        throw std::invalid_argument("encode_chunk: shapes do not fit together");
    static std::once_flag once;
    std::call_once(once, [&] { before = reinterpret_cast<SetAbortCallback>(set_abort_callback)(on_abort); });
    const Chunk chunk{reinterpret_cast<QuantizeChunk>(quantize_chunk),
                      kind,
                      rows.data(),
                      weights ? weights->data() : nullptr,
                      out.data(),
                      static_cast<std::int64_t>(rows.shape(0)),
                      static_cast<std::int64_t>(rows.shape(1))};
    Guard own{};
    bool finished = false;
    {
        const nb::gil_scoped_release unlocked;
        finished = run(chunk, own);
    }
    if (finished) return std::nullopt;
    return std::string(own.message);
}

}  // namespace

void register_guarded(nb::module_& m) {
    m.def("encode_chunk", &encode_chunk, nb::arg("quantize_chunk"), nb::arg("set_abort_callback"), nb::arg("kind"),
          nb::arg("rows"), nb::arg("weights").none(), nb::arg("out").noconvert());
}
