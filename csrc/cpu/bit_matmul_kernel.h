// What the kernels of bit_matmul share: the table that the driver picks from, and the plain kernel, one dot product of
// AND and popcount at a time.
#pragma once

#include <cstdint>

namespace fastbin {

// y[i * y_stride + j] = dot(a[i], b[j]) for m rows of a and n rows of b.
using BitDotsKernel = void (*)(const uint32_t* a, int64_t m, const uint32_t* b, int64_t n, int64_t words, int32_t* y,
                               int64_t y_stride);

// The lookup kernel of bit_matmul_lookup.h, for products large enough to repay its packing.
struct BitLookupKernel {
  int panel;  // rows of b in a panel; 0 where an instruction set has no such kernel
  // `pairs` pairs of rows of a (the last may lack its second row) -> codes [pairs, lookup_steps(words)]
  void (*pack_pairs)(const uint32_t* a, int64_t m, int64_t words, uint8_t* codes);
  // n <= panel rows of b -> [lookup_steps(words), panel] nibbles
  void (*pack_panel)(const uint32_t* b, int64_t n, int64_t words, uint8_t* nibbles);
  // m <= kLookupRows rows of a, n <= panel rows of b
  void (*tile)(const uint8_t* codes, int64_t m, const uint8_t* nibbles, int64_t n, int64_t words, int32_t* y,
               int64_t y_stride);
};

struct BitMatmulKernels {
  BitDotsKernel dots;
  BitLookupKernel lookup;
};

constexpr int64_t kLookupRows = 128;

// A word's 8 nibbles are a step each; steps go by threes. Static: a copy for each file, so that none
// compiled for AVX-512 serves the others.
static inline constexpr int64_t lookup_steps(int64_t words) { return (8 * words + 2) / 3 * 3; }

namespace scalar {
extern const BitMatmulKernels kBitMatmul;
}
#if defined(__x86_64__)
namespace avx2 {
extern const BitMatmulKernels kBitMatmul;
}
namespace avx512 {
extern const BitMatmulKernels kBitMatmul;
}
#endif

}  // namespace fastbin

#if defined(FASTBIN_ISA_NAMESPACE)
#include "cpu/simd.h"

namespace fastbin {
namespace FASTBIN_ISA_NAMESPACE {

// The instruction set's own: dot products of one row with kDots (4) rows of b, and with one.
template <int kDots>
static FASTBIN_INLINE void dots(const uint32_t* a, const uint32_t* b, int64_t words, int32_t* y);

static void dot_tile(const uint32_t* a, int64_t m, const uint32_t* b, int64_t n, int64_t words, int32_t* y,
                     int64_t y_stride) {
  for (int64_t i = 0; i < m; ++i) {
    int64_t j = 0;
    for (; j + 4 <= n; j += 4) dots<4>(a + i * words, b + j * words, words, y + i * y_stride + j);
    for (; j < n; ++j) dots<1>(a + i * words, b + j * words, words, y + i * y_stride + j);
  }
}

}  // namespace FASTBIN_ISA_NAMESPACE
}  // namespace fastbin
#endif
