#pragma once
// All formats for one instruction set; a format's kernels are one line here. See lanes.hpp for how it is compiled.
#include "codec.hpp"
#include "codec_q8_0.hpp"

namespace bitloss {
namespace {

constexpr Codec codecs[] = {
    // enum ggml_type, weights and bytes of a block
    {8, 32, 34, q8_0::encode, q8_0::decode},
};

constexpr CodecTable table{codecs, sizeof codecs / sizeof codecs[0], lanes};

}  // namespace
}  // namespace bitloss
