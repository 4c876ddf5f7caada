// Binding of SHA-256: digests that grow, one at a time or two by the same bytes.
#include "sha256.hpp"

#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "module.hpp"

namespace nb = nanobind;
using bitloss::sha_block;
using bitloss::ShaState;

#if !defined(__x86_64__)
namespace bitloss {

bool sha_available() { return false; }
void sha_blocks(ShaState&, const std::uint8_t*, std::size_t) {}
void sha_blocks_of_two(ShaState&, const std::uint8_t*, ShaState&, const std::uint8_t*, std::size_t) {}

}  // namespace bitloss
#endif

namespace {

using In = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

class Sha256 {
  public:
    Sha256() {
        if (!bitloss::sha_available()) throw std::runtime_error("this machine has no SHA instructions");
    }

    void update(const std::uint8_t* data, std::size_t n) {
        n -= begin(data, n);
        go_on(data, n);
    }

    static void update_two(Sha256& a, Sha256& b, const std::uint8_t* data, std::size_t n) {
        const std::uint8_t *at_a = data, *at_b = data;
        const std::size_t left_a = n - a.begin(at_a, n), left_b = n - b.begin(at_b, n);
        const std::size_t both = std::min(left_a, left_b) / sha_block;
        bitloss::sha_blocks_of_two(a.state_, at_a, b.state_, at_b, both);
        a.go_on(at_a + both * sha_block, left_a - both * sha_block);
        b.go_on(at_b + both * sha_block, left_b - both * sha_block);
    }

    nb::bytes digest() const {
        Sha256 copy(*this);
        const std::uint64_t bits = 8 * copy.length_;
        std::uint8_t end[2 * sha_block] = {0x80};
        const std::size_t used = copy.length_ % sha_block;
        const std::size_t zeros = (used < sha_block - 8 ? sha_block : 2 * sha_block) - used - 8;
        for (std::size_t i = 0; i < 8; ++i) end[zeros + i] = static_cast<std::uint8_t>(bits >> (56 - 8 * i));
        copy.update(end, zeros + 8);
        char out[32];
        for (std::size_t i = 0; i < 32; ++i) out[i] = static_cast<char>(copy.state_.h[i / 4] >> (24 - 8 * (i % 4)));
        return nb::bytes(out, 32);
    }

  private:
    // Counts n bytes and fills up the block under way; moves `data` behind what was taken and returns how much that was.
    std::size_t begin(const std::uint8_t*& data, std::size_t n) {
        const std::size_t used = length_ % sha_block;
        const std::size_t taken = used == 0 ? 0 : std::min(n, sha_block - used);
        length_ += n;
        if (taken > 0) std::memcpy(rest_ + used, data, taken);
        if (used > 0 && used + taken == sha_block) bitloss::sha_blocks(state_, rest_, 1);
        data += taken;
        return taken;
    }

    // Takes bytes that begin a block; their number is counted already.
    void go_on(const std::uint8_t* data, std::size_t n) {
        bitloss::sha_blocks(state_, data, n / sha_block);
        if (n % sha_block > 0) std::memcpy(rest_, data + n / sha_block * sha_block, n % sha_block);
    }

    ShaState state_;
    std::uint8_t rest_[sha_block] = {};
    std::uint64_t length_ = 0;
};

}  // namespace

void register_sha256(nb::module_& m) {
    m.def("sha_available", &bitloss::sha_available);
    nb::class_<Sha256>(m, "Sha256")
        .def(nb::init<>())
        .def("digest", &Sha256::digest)
        .def("update",
             [](Sha256& self, In data) {
                 const nb::gil_scoped_release unlocked;
                 self.update(data.data(), data.shape(0));
             },
             nb::arg("data"))
        .def("update_with",
             [](Sha256& self, Sha256& other, In data) {
                 if (&self == &other) throw std::invalid_argument("update_with: two digests");
                 const nb::gil_scoped_release unlocked;
                 Sha256::update_two(self, other, data.data(), data.shape(0));
             },
             nb::arg("other"), nb::arg("data"));
}
