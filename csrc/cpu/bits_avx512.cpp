#include "cpu/avx512.h"

#define FASTBIN_ISA_NAMESPACE avx512
#include "cpu/bits_kernel.h"

namespace fastbin {
namespace avx512 {

static FASTBIN_INLINE uint32_t join(__mmask16 low, __mmask16 high) {
  return static_cast<uint32_t>(low) | static_cast<uint32_t>(high) << 16;
}

static FASTBIN_INLINE Packed threshold32(const float* x, float threshold) {
  const __m512 t = _mm512_set1_ps(threshold), low = _mm512_loadu_ps(x), high = _mm512_loadu_ps(x + 16);
  const uint32_t bits = join(_mm512_cmp_ps_mask(low, t, _CMP_GT_OQ), _mm512_cmp_ps_mask(high, t, _CMP_GT_OQ));
  // "Unordered" holds if either side is a NaN, so one comparison looks at both vectors.
  return {bits, _mm512_cmp_ps_mask(low, high, _CMP_UNORD_Q) != 0};
}

static FASTBIN_INLINE Packed binary32(const float* x) {
  const __m512 one = _mm512_set1_ps(1.0f), zero = _mm512_setzero_ps();
  const __m512 low = _mm512_loadu_ps(x), high = _mm512_loadu_ps(x + 16);
  const uint32_t ones = join(_mm512_cmp_ps_mask(low, one, _CMP_EQ_OQ), _mm512_cmp_ps_mask(high, one, _CMP_EQ_OQ));
  const uint32_t zeros = join(_mm512_cmp_ps_mask(low, zero, _CMP_EQ_OQ), _mm512_cmp_ps_mask(high, zero, _CMP_EQ_OQ));
  return {ones, (ones | zeros) != 0xffffffff};
}

static FASTBIN_INLINE Packed binary32(const uint8_t* x) {
  const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  const uint32_t bits = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_slli_epi16(v, 7)));
  return {bits, _mm256_testz_si256(v, _mm256_set1_epi8(-2)) == 0};
}

static FASTBIN_INLINE void expand32(uint32_t bits, float* y) {
  const __m512 one = _mm512_set1_ps(1.0f);
  _mm512_storeu_ps(y, _mm512_maskz_mov_ps(static_cast<__mmask16>(bits), one));
  _mm512_storeu_ps(y + 16, _mm512_maskz_mov_ps(static_cast<__mmask16>(bits >> 16), one));
}

static FASTBIN_INLINE void expand32(uint32_t bits, uint8_t* y) {
  const __m256i ones = _mm256_maskz_mov_epi8(static_cast<__mmask32>(bits), _mm256_set1_epi8(1));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), ones);
}

const BitsKernels kBits = FASTBIN_BITS_KERNELS;

}  // namespace avx512
}  // namespace fastbin
