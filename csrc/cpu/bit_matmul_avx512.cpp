#include "cpu/avx512.h"

#define FASTBIN_ISA_NAMESPACE avx512
#include "cpu/simd.h"

namespace fastbin {
namespace avx512 {

struct Bytes {
  static constexpr int kBytes = 64;
  __m512i v;

  static FASTBIN_INLINE Bytes load(const void* p) { return {_mm512_loadu_si512(p)}; }
  static FASTBIN_INLINE Bytes table(const uint8_t* p) {
    return {_mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  static FASTBIN_INLINE Bytes set16(int16_t value) { return {_mm512_set1_epi16(value)}; }
  FASTBIN_INLINE void store(void* p) const { _mm512_storeu_si512(p, v); }
  FASTBIN_INLINE Bytes lookup(Bytes nibbles) const { return {_mm512_shuffle_epi8(v, nibbles.v)}; }
  FASTBIN_INLINE Bytes right4() const { return {_mm512_srli_epi16(v, 4)}; }
  FASTBIN_INLINE Bytes right8() const { return {_mm512_srli_epi16(v, 8)}; }
  FASTBIN_INLINE Bytes left4() const { return {_mm512_slli_epi16(v, 4)}; }
  friend FASTBIN_INLINE Bytes operator&(Bytes a, Bytes b) { return {_mm512_and_si512(a.v, b.v)}; }
  friend FASTBIN_INLINE Bytes add8(Bytes a, Bytes b) { return {_mm512_add_epi8(a.v, b.v)}; }
  friend FASTBIN_INLINE Bytes add16(Bytes a, Bytes b) { return {_mm512_add_epi16(a.v, b.v)}; }
  friend FASTBIN_INLINE Bytes sub16(Bytes a, Bytes b) { return {_mm512_sub_epi16(a.v, b.v)}; }
  friend FASTBIN_INLINE void keep_order(Bytes&, Bytes&) {}  // 32 registers hold all that is under way
};

}  // namespace avx512
}  // namespace fastbin

#include "cpu/bit_matmul_lookup.h"

namespace fastbin {
namespace avx512 {

// 16 words, 0 where the mask is: those are not touched.
static FASTBIN_INLINE __m512i load(__mmask16 inside, const uint32_t* p) {
#if defined(FASTBIN_EMULATE_AVX512)  // SIMDe reads the whole vector
  uint32_t words[16] = {};
  for (int i = 0; i < 16 && (inside >> i & 1); ++i) words[i] = p[i];
  return _mm512_loadu_si512(words);
#else
  return _mm512_maskz_loadu_epi32(inside, p);
#endif
}

static FASTBIN_INLINE int32_t sum(__m512i v) {
  const __m256i four = _mm256_add_epi64(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
  const __m128i two = _mm_add_epi64(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
  return _mm_cvtsi128_si32(_mm_add_epi64(two, _mm_unpackhi_epi64(two, two)));
}

// AND, VPOPCNTQ, ADD on 16 words, the last ones under a mask: one load of a for kDots rows of b.
template <int kDots>
static FASTBIN_INLINE void dots(const uint32_t* a, const uint32_t* b, int64_t words, int32_t* y) {
  __m512i sums[kDots];
  for (int d = 0; d < kDots; ++d) sums[d] = _mm512_setzero_si512();
  for (int64_t i = 0; i < words; i += 16) {
    const __mmask16 inside = static_cast<__mmask16>(words - i < 16 ? (1u << (words - i)) - 1 : 0xffff);
    const __m512i x = load(inside, a + i);
    for (int d = 0; d < kDots; ++d) {
      const __m512i z = load(inside, b + d * words + i);
      sums[d] = _mm512_add_epi64(sums[d], _mm512_popcnt_epi64(_mm512_and_si512(x, z)));
    }
  }
  for (int d = 0; d < kDots; ++d) y[d] = sum(sums[d]);
}

const BitMatmulKernels kBitMatmul = {dot_tile, kLookup};

}  // namespace avx512
}  // namespace fastbin
