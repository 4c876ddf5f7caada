#pragma once
// All formats for one instruction set; a format's kernels are one line here. See lanes.hpp for how it is compiled.
#include "codec.hpp"
#include "codec_q2_k.hpp"
#include "codec_q3_k.hpp"
#include "codec_q4_k.hpp"
#include "codec_q6_k.hpp"
#include "codec_q8_0.hpp"

namespace bitloss {
namespace {

constexpr Codec codecs[] = {
    // enum ggml_type, weights and bytes of a block
    {8, 32, 34, q8_0::encode, q8_0::decode},
    {10, 256, k::q2_bytes, k::encode_q2_k, nullptr},
    {11, 256, k::q3_bytes, k::encode_q3_k, nullptr},
    {12, 256, k::q4_bytes, k::encode_affine32<15>, nullptr},
    {13, 256, k::q5_bytes, k::encode_affine32<31>, nullptr},
    {14, 256, k::q6_bytes, k::encode_q6_k, nullptr},
};

constexpr CodecTable table{codecs, sizeof codecs / sizeof codecs[0], lanes};

}  // namespace
}  // namespace bitloss
