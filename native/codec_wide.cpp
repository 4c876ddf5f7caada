// The codecs with the lanes of AVX-512 on a machine that has AVX2; flags in CMakeLists.txt.
#define BITLOSS_VECTOR_BYTES 32
#define BITLOSS_LANES 16
#include "codec_table.hpp"

namespace bitloss {

CodecTable codecs_wide() { return table; }

}  // namespace bitloss
