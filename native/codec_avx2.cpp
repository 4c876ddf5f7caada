// The codecs for AVX2; flags in CMakeLists.txt.
#define BITLOSS_VECTOR_BYTES 32
#define BITLOSS_LANES 8
#include "codec_table.hpp"

namespace bitloss {

CodecTable codecs_avx2() { return table; }

}  // namespace bitloss
