#define FASTBIN_ISA_NAMESPACE scalar
#include "cpu/bit_matmul_kernel.h"
#include "cpu/popcount.h"

namespace fastbin {
namespace scalar {

template <int kDots>
static FASTBIN_INLINE void dots(const uint32_t* a, const uint32_t* b, int64_t words, int32_t* y) {
  for (int d = 0; d < kDots; ++d, b += words) {
    y[d] = static_cast<int32_t>(count_bits(
        words, [a, b](int64_t i, int64_t count) { return load_words(a + i, count) & load_words(b + i, count); }));
  }
}

const BitMatmulKernels kBitMatmul = {dot_tile, {}};

}  // namespace scalar
}  // namespace fastbin
