#include <immintrin.h>

#define FASTBIN_ISA_NAMESPACE avx2
#include "cpu/bits_kernel.h"

namespace fastbin {
namespace avx2 {

static FASTBIN_INLINE uint32_t mask(__m256 v) { return static_cast<uint32_t>(_mm256_movemask_ps(v)); }

static FASTBIN_INLINE Packed threshold32(const float* x, float threshold) {
  const __m256 t = _mm256_set1_ps(threshold);
  __m256 v[4];
  uint32_t bits = 0;
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm256_loadu_ps(x + 8 * i);
    bits |= mask(_mm256_cmp_ps(v[i], t, _CMP_GT_OQ)) << (8 * i);
  }
  // "Unordered" holds if either side is a NaN, so one comparison looks at two vectors.
  const __m256 nan = _mm256_or_ps(_mm256_cmp_ps(v[0], v[1], _CMP_UNORD_Q), _mm256_cmp_ps(v[2], v[3], _CMP_UNORD_Q));
  return {bits, mask(nan) != 0};
}

static FASTBIN_INLINE Packed binary32(const float* x) {
  const __m256 one = _mm256_set1_ps(1.0f);
  uint32_t bits = 0;
  __m256 legal = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
  for (int i = 0; i < 4; ++i) {
    const __m256 v = _mm256_loadu_ps(x + 8 * i);
    const __m256 is_one = _mm256_cmp_ps(v, one, _CMP_EQ_OQ);
    bits |= mask(is_one) << (8 * i);
    legal = _mm256_and_ps(legal, _mm256_or_ps(is_one, _mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_EQ_OQ)));
  }
  return {bits, mask(legal) != 0xff};
}

static FASTBIN_INLINE Packed binary32(const uint8_t* x) {
  const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  const uint32_t bits = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_slli_epi16(v, 7)));
  return {bits, _mm256_testz_si256(v, _mm256_set1_epi8(-2)) == 0};
}

static FASTBIN_INLINE void expand32(uint32_t bits, float* y) {
  const __m256i word = _mm256_set1_epi32(static_cast<int>(bits)), one = _mm256_castps_si256(_mm256_set1_ps(1.0f));
  __m256i select = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  for (int i = 0; i < 4; ++i) {
    const __m256i set = _mm256_cmpeq_epi32(_mm256_and_si256(word, select), select);
    _mm256_storeu_ps(y + 8 * i, _mm256_castsi256_ps(_mm256_and_si256(set, one)));
    select = _mm256_slli_epi32(select, 8);
  }
}

static FASTBIN_INLINE void expand32(uint32_t bits, uint8_t* y) {
  // Byte i of the vector takes byte i / 8 of the word, and of it bit i % 8.
  const __m256i spread = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i select = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201));
  const __m256i v = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(bits)), spread);
  const __m256i ones = _mm256_min_epu8(_mm256_and_si256(v, select), _mm256_set1_epi8(1));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), ones);
}

const BitsKernels kBits = FASTBIN_BITS_KERNELS;

}  // namespace avx2
}  // namespace fastbin
