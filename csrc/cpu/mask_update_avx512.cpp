#define FASTBIN_ISA_NAMESPACE avx512
#include "cpu/avx512.h"
#include "cpu/simd.h"

namespace fastbin {
namespace avx512 {

typedef float Floats __attribute__((vector_size(64)));
typedef uint64_t Quads __attribute__((vector_size(64)));
typedef uint32_t Halves __attribute__((vector_size(64)));

constexpr uint64_t kBlockOfLane[8] = {0, 1, 2, 3, 4, 5, 6, 7};

FASTBIN_INLINE Floats square_root(Floats a) { return _mm512_sqrt_ps(a); }

FASTBIN_INLINE Floats minimum(Floats a, Floats b) { return _mm512_min_ps(a, b); }

FASTBIN_INLINE Floats maximum(Floats a, Floats b) { return _mm512_max_ps(a, b); }

FASTBIN_INLINE uint32_t less_bits(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }

FASTBIN_INLINE Quads multiply_low(Quads a, Quads b) { return (Quads)_mm512_mul_epu32((__m512i)a, (__m512i)b); }

FASTBIN_INLINE Halves low_halves(Quads a, Quads b) {
  const Halves even = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
  return (Halves)_mm512_permutex2var_epi32((__m512i)a, (__m512i)even, (__m512i)b);
}

}  // namespace avx512
}  // namespace fastbin

#include "cpu/mask_update_kernel.h"
