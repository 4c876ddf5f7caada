#pragma once
// All formats for one instruction set; a format's kernels are one line here. See lanes.hpp for how it is compiled.
#include "codec.hpp"
#include "codec_decode.hpp"
#include "codec_iq4.hpp"
#include "codec_legacy.hpp"
#include "codec_q2_k.hpp"
#include "codec_q3_k.hpp"
#include "codec_q4_k.hpp"
#include "codec_q6_k.hpp"
#include "codec_q8_0.hpp"

namespace bitloss {
namespace {

constexpr Codec codecs[] = {
    // enum ggml_type, weights and bytes of a block
    {1, 1, 2, nullptr, decoding::f16},
    {2, 32, 18, legacy::encode<16, false>, decoding::blocks<32, 18, decoding::legacy<16, false>>},
    {3, 32, 20, legacy::encode<16, true>, decoding::blocks<32, 20, decoding::legacy<16, true>>},
    {6, 32, 22, legacy::encode<32, false>, decoding::blocks<32, 22, decoding::legacy<32, false>>},
    {7, 32, 24, legacy::encode<32, true>, decoding::blocks<32, 24, decoding::legacy<32, true>>},
    {8, 32, 34, q8_0::encode, decoding::blocks<32, 34, decoding::q8_0>},
    {10, 256, k::q2_bytes, k::encode_q2_k, decoding::blocks<256, k::q2_bytes, decoding::q2_k>},
    {11, 256, k::q3_bytes, k::encode_q3_k, decoding::blocks<256, k::q3_bytes, decoding::q3_k>},
    {12, 256, k::q4_bytes, k::encode_affine32<15>, decoding::blocks<256, k::q4_bytes, decoding::q4_k>},
    {13, 256, k::q5_bytes, k::encode_affine32<31>, decoding::blocks<256, k::q5_bytes, decoding::q5_k>},
    {14, 256, k::q6_bytes, k::encode_q6_k, decoding::blocks<256, k::q6_bytes, decoding::q6_k>},
    {20, 32, 18, iq4::encode_nl, decoding::blocks<32, 18, decoding::iq4_nl>},
    {23, 256, 136, iq4::encode_xs, decoding::blocks<256, 136, decoding::iq4_xs>},
    {30, 1, 2, nullptr, decoding::bf16},
};

constexpr CodecTable table{codecs, sizeof codecs / sizeof codecs[0], lanes};

}  // namespace
}  // namespace bitloss
