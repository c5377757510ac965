#define FASTBIN_ISA_NAMESPACE avx2
#include <immintrin.h>

#include "cpu/simd.h"

namespace fastbin {
namespace avx2 {
namespace {

using Words = __m256i;
// At 1024 and 4096 inputs and outputs the blocks' kernel is faster from three samples on (Zen 3).
constexpr int64_t kSmallBatch = 2;
constexpr int kLanes = 8;
constexpr int kBits = 3;

FASTBIN_INLINE Words load_words(const uint32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
FASTBIN_INLINE Words shift_right(Words x, int n) { return _mm256_srli_epi32(x, n); }
FASTBIN_INLINE void store_words(uint32_t* p, Words x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
FASTBIN_INLINE __m256 load_table(const float* p) { return _mm256_loadu_ps(p); }
FASTBIN_INLINE __m256i load_table(const int32_t* p) { return load_words(reinterpret_cast<const uint32_t*>(p)); }
FASTBIN_INLINE __m256 permute(__m256 table, Words index) { return _mm256_permutevar8x32_ps(table, index); }
FASTBIN_INLINE __m256i permute(__m256i table, Words index) { return _mm256_permutevar8x32_epi32(table, index); }
FASTBIN_INLINE __m256 add(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
FASTBIN_INLINE __m256i add(__m256i a, __m256i b) { return _mm256_add_epi32(a, b); }

FASTBIN_INLINE void keep_order(__m256& v) { asm volatile("" : "+x"(v)); }
FASTBIN_INLINE void keep_order(__m256i& v) { asm volatile("" : "+x"(v)); }

// Eight words of eight rows, a vector a row, to a vector a word. Loads bring rows i and 4 + i side by side, so that
// what is left are two rounds within 16-byte lanes.
FASTBIN_INLINE void load_transposed(const uint32_t* from, int64_t stride, Words (&a)[8]) {
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    Words row[4], pair[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m128i* low = reinterpret_cast<const __m128i*>(from + i * stride + 4 * half);
      const __m128i* high = reinterpret_cast<const __m128i*>(from + (4 + i) * stride + 4 * half);
      row[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(low)), _mm_loadu_si128(high), 1);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 4; i += 2) {
      pair[i] = _mm256_unpacklo_epi32(row[i], row[i + 1]);
      pair[i + 1] = _mm256_unpackhi_epi32(row[i], row[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      a[4 * half + 2 * i] = _mm256_unpacklo_epi64(pair[i], pair[i + 2]);
      a[4 * half + 2 * i + 1] = _mm256_unpackhi_epi64(pair[i], pair[i + 2]);
    }
  }
}

}  // namespace
}  // namespace avx2
}  // namespace fastbin

#include "cpu/bit_linear_register_kernel.h"
