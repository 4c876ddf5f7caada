#pragma once
// SHA-256 (FIPS 180-4), two digests of the same bytes side by side. A processor's SHA instructions wait for one another
// within a digest, and two digests fill each other's gaps: both take little longer than one.
#include <cstddef>
#include <cstdint>

namespace bitloss {

constexpr std::size_t sha_block = 64;

struct ShaState {
    std::uint32_t h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                          0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
};

// Whether this machine has the instructions that the functions below need.
bool sha_available();
void sha_blocks(ShaState& state, const std::uint8_t* data, std::size_t blocks);
// The same number of blocks for each; where they begin may differ.
void sha_blocks_of_two(ShaState& a, const std::uint8_t* at_a, ShaState& b, const std::uint8_t* at_b, std::size_t blocks);

}  // namespace bitloss
