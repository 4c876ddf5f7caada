// The codecs for AVX-512; flags in CMakeLists.txt.
#define BITLOSS_VECTOR_BYTES 64
#define BITLOSS_LANES 16
#include "codec_table.hpp"

namespace bitloss {

CodecTable codecs_avx512() { return table; }

}  // namespace bitloss
