#define FASTBIN_ISA_NAMESPACE avx512
#include "cpu/avx512.h"
#include "cpu/simd.h"

namespace fastbin {
namespace avx512 {
namespace {

using Words = __m512i;
// An estimate: four samples take 4 / 64 operations a product, half a block's eight lanes 1 / 8.
constexpr int64_t kSmallBatch = 4;
constexpr int kLanes = 16;
constexpr int kBits = 4;

FASTBIN_INLINE Words load_words(const uint32_t* p) { return _mm512_loadu_si512(p); }
FASTBIN_INLINE Words shift_right(Words x, int n) { return _mm512_srli_epi32(x, static_cast<unsigned>(n)); }
FASTBIN_INLINE void store_words(uint32_t* p, Words x) { _mm512_storeu_si512(p, x); }
FASTBIN_INLINE __m512 load_table(const float* p) { return _mm512_loadu_ps(p); }
FASTBIN_INLINE __m512i load_table(const int32_t* p) { return _mm512_loadu_si512(p); }
FASTBIN_INLINE __m512 permute(__m512 table, Words index) { return _mm512_permutexvar_ps(index, table); }
FASTBIN_INLINE __m512i permute(__m512i table, Words index) { return _mm512_permutexvar_epi32(index, table); }
FASTBIN_INLINE __m512 add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
FASTBIN_INLINE __m512i add(__m512i a, __m512i b) { return _mm512_add_epi32(a, b); }

#if defined(FASTBIN_EMULATE_AVX512)
template <typename V>
FASTBIN_INLINE void keep_order(V&) {}
#else
FASTBIN_INLINE void keep_order(__m512& v) { asm volatile("" : "+v"(v)); }
FASTBIN_INLINE void keep_order(__m512i& v) { asm volatile("" : "+v"(v)); }
#endif

// Sixteen words of sixteen rows, a vector a row, to a vector a word: two rounds within 16-byte lanes, two of whole
// lanes.
FASTBIN_INLINE void load_transposed(const uint32_t* from, int64_t stride, Words (&a)[16]) {
  Words b[16], c[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) a[i] = load_words(from + i * stride);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    c[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    c[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    c[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    c[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const Words even_low = _mm512_shuffle_i32x4(c[j], c[4 + j], 0x88);
    const Words odd_low = _mm512_shuffle_i32x4(c[j], c[4 + j], 0xDD);
    const Words even_high = _mm512_shuffle_i32x4(c[8 + j], c[12 + j], 0x88);
    const Words odd_high = _mm512_shuffle_i32x4(c[8 + j], c[12 + j], 0xDD);
    a[j] = _mm512_shuffle_i32x4(even_low, even_high, 0x88);
    a[4 + j] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
    a[8 + j] = _mm512_shuffle_i32x4(even_low, even_high, 0xDD);
    a[12 + j] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xDD);
  }
}

}  // namespace
}  // namespace avx512
}  // namespace fastbin

#include "cpu/bit_linear_register_kernel.h"
