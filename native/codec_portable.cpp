// The codecs for any machine with vectors of 16 bytes (or what the compiler makes of them).
#define BITLOSS_VECTOR_BYTES 16
#define BITLOSS_LANES 4
#include "codec_table.hpp"

namespace bitloss {

CodecTable codecs_portable() { return table; }

}  // namespace bitloss
