#define FASTBIN_ISA_NAMESPACE avx512bf16
#include "cpu/avx512.h"
#include "cpu/simd.h"

namespace fastbin {
namespace avx512bf16 {

// As on AVX-512, but with two samples to a cell. vdpbf16ps adds both products in float32 and takes denormals as 0.
typedef float Floats __attribute__((vector_size(64)));
typedef uint32_t Cells __attribute__((vector_size(64)));
constexpr int kCellSamples = 2;
constexpr int kMicroRows = 14;

FASTBIN_INLINE Floats multiply_add(Cells a, Cells b, Floats c) {
  __m512bh u, v;
  std::memcpy(&u, &a, sizeof(u));
  std::memcpy(&v, &b, sizeof(v));
  return _mm512_dpbf16_ps(c, u, v);
}

// To the nearest, ties to even: adds just under half of the last place kept, and the rest of it where that is odd. A
// carry goes on into the exponent, as it should; NaN, whose payload could carry away, stays one.
FASTBIN_INLINE uint32_t bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  return (bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16 | 0x40u) : rounded;
}

FASTBIN_INLINE uint32_t cell(float first, float second) { return bfloat16(first) | bfloat16(second) << 16; }

}  // namespace avx512bf16
}  // namespace fastbin

#include "cpu/gradient_kernel.h"
