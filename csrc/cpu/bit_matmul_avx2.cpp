#include <immintrin.h>

#define FASTBIN_ISA_NAMESPACE avx2
#include "cpu/simd.h"

namespace fastbin {
namespace avx2 {

struct Bytes {
  static constexpr int kBytes = 32;
  __m256i v;

  static FASTBIN_INLINE Bytes load(const void* p) { return {_mm256_loadu_si256(static_cast<const __m256i*>(p))}; }
  static FASTBIN_INLINE Bytes table(const uint8_t* p) {
    return {_mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  static FASTBIN_INLINE Bytes set16(int16_t value) { return {_mm256_set1_epi16(value)}; }
  FASTBIN_INLINE void store(void* p) const { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
  FASTBIN_INLINE Bytes lookup(Bytes nibbles) const { return {_mm256_shuffle_epi8(v, nibbles.v)}; }
  FASTBIN_INLINE Bytes right4() const { return {_mm256_srli_epi16(v, 4)}; }
  FASTBIN_INLINE Bytes right8() const { return {_mm256_srli_epi16(v, 8)}; }
  FASTBIN_INLINE Bytes left4() const { return {_mm256_slli_epi16(v, 4)}; }
  friend FASTBIN_INLINE Bytes operator&(Bytes a, Bytes b) { return {_mm256_and_si256(a.v, b.v)}; }
  friend FASTBIN_INLINE Bytes add8(Bytes a, Bytes b) { return {_mm256_add_epi8(a.v, b.v)}; }
  friend FASTBIN_INLINE Bytes add16(Bytes a, Bytes b) { return {_mm256_add_epi16(a.v, b.v)}; }
  friend FASTBIN_INLINE Bytes sub16(Bytes a, Bytes b) { return {_mm256_sub_epi16(a.v, b.v)}; }
  friend FASTBIN_INLINE void keep_order(Bytes& a, Bytes& b) { asm volatile("" : "+x"(a.v), "+x"(b.v)); }
};

}  // namespace avx2
}  // namespace fastbin

#include "cpu/bit_matmul_lookup.h"

namespace fastbin {
namespace avx2 {

// AND, POPCNT, ADD on 64 bits: one load of a for kDots rows of b.
template <int kDots>
static FASTBIN_INLINE void dots(const uint32_t* a, const uint32_t* b, int64_t words, int32_t* y) {
  int64_t sums[kDots] = {};
  int64_t i = 0;
  for (; i + 2 <= words; i += 2) {
    uint64_t x;
    std::memcpy(&x, a + i, sizeof(x));
    for (int d = 0; d < kDots; ++d) {
      uint64_t z;
      std::memcpy(&z, b + d * words + i, sizeof(z));
      sums[d] += __builtin_popcountll(x & z);
    }
  }
  for (int d = 0; d < kDots; ++d) {
    if (i < words) sums[d] += __builtin_popcount(a[i] & b[d * words + i]);
    y[d] = static_cast<int32_t>(sums[d]);
  }
}

const BitMatmulKernels kBitMatmul = {dot_tile, kLookup};

}  // namespace avx2
}  // namespace fastbin
