#define FASTBIN_ISA_NAMESPACE scalar
#include "cpu/bits_kernel.h"

namespace fastbin {
namespace scalar {

static FASTBIN_INLINE Packed threshold32(const float* x, float threshold) {
  uint32_t bits = 0, bad = 0;
  for (int i = 0; i < 32; ++i) {
    bits |= static_cast<uint32_t>(x[i] > threshold) << i;
    bad |= static_cast<uint32_t>(x[i] != x[i]);
  }
  return {bits, bad != 0};
}

static FASTBIN_INLINE Packed binary32(const float* x) {
  uint32_t bits = 0, bad = 0;
  for (int i = 0; i < 32; ++i) {
    const uint32_t one = x[i] == 1.0f, zero = x[i] == 0.0f;
    bits |= one << i;
    bad |= (one | zero) ^ 1;
  }
  return {bits, bad != 0};
}

static FASTBIN_INLINE Packed binary32(const uint8_t* x) {
  // Bit 0 of each of 8 bytes, gathered into the top byte: the product's term i * 8 of the multiplicand's bit 56 - 7 i
  // lands on bit 56 + i, and no two terms meet.
  uint32_t bits = 0;
  uint64_t all = 0;
  for (int i = 0; i < 32; i += 8) {
    uint64_t v = 0;
    for (int k = 0; k < 8; ++k) v |= static_cast<uint64_t>(x[i + k]) << (8 * k);
    all |= v;
    bits |= static_cast<uint32_t>(((v & 0x0101010101010101) * 0x0102040810204080) >> 56) << i;
  }
  return {bits, (all & 0xfefefefefefefefe) != 0};
}

static FASTBIN_INLINE void expand32(uint32_t bits, float* y) {
  for (int i = 0; i < 32; ++i) y[i] = static_cast<float>((bits >> i) & 1);
}

static FASTBIN_INLINE void expand32(uint32_t bits, uint8_t* y) {
  for (int i = 0; i < 32; ++i) y[i] = (bits >> i) & 1;
}

const BitsKernels kBits = FASTBIN_BITS_KERNELS;

}  // namespace scalar
}  // namespace fastbin
