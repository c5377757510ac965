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

// Two rounds within 16-byte lanes, one of whole lanes.
FASTBIN_INLINE void transpose_words(Words (&a)[8]) {
  Words b[8], c[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    b[i] = _mm256_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_epi32(a[i], a[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    c[i] = _mm256_unpacklo_epi64(b[i], b[i + 2]);
    c[i + 1] = _mm256_unpackhi_epi64(b[i], b[i + 2]);
    c[i + 2] = _mm256_unpacklo_epi64(b[i + 1], b[i + 3]);
    c[i + 3] = _mm256_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    a[j] = _mm256_permute2x128_si256(c[j], c[4 + j], 0x20);
    a[4 + j] = _mm256_permute2x128_si256(c[j], c[4 + j], 0x31);
  }
}

}  // namespace
}  // namespace avx2
}  // namespace fastbin

#include "cpu/bit_linear_register_kernel.h"
