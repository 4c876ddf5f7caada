// Weights are fetched before they are needed.
#pragma once
#include <cstddef>
#include <cstdint>

namespace bitloss {
namespace {

// Fetches the weights of the next panel while the rows of this one are gone through, a share at every step: a slice has
// so few rows that waiting for them would be a tenth of the time.
class Ahead {
   public:
    Ahead(const std::uint8_t* from, std::size_t bytes, std::size_t steps)
        : at_(from), end_(from + (bytes < most ? bytes : most)), share_((bytes / steps / line + 1) * line) {}
    void step() {
        for (const std::uint8_t* to = at_ + share_; at_ < to && at_ < end_; at_ += line) __builtin_prefetch(at_, 0, 2);
    }

   private:
    static constexpr std::size_t line = 64, most = 65536;  // of long rows the processor foresees the rest
    const std::uint8_t *at_, *end_;
    std::size_t share_;
};

}  // namespace
}  // namespace bitloss
