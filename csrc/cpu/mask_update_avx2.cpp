#define FASTBIN_ISA_NAMESPACE avx2
#include <immintrin.h>

#include "cpu/simd.h"

namespace fastbin {
namespace avx2 {

typedef float Floats __attribute__((vector_size(32)));
typedef uint64_t Quads __attribute__((vector_size(32)));
typedef uint32_t Halves __attribute__((vector_size(32)));

// vshufps joins within 128-bit lanes: [a0 a1 b0 b1 | a2 a3 b2 b3].
constexpr uint64_t kBlockOfLane[8] = {0, 1, 4, 5, 2, 3, 6, 7};

FASTBIN_INLINE Floats square_root(Floats a) { return _mm256_sqrt_ps(a); }

FASTBIN_INLINE Floats minimum(Floats a, Floats b) { return _mm256_min_ps(a, b); }

FASTBIN_INLINE Floats maximum(Floats a, Floats b) { return _mm256_max_ps(a, b); }

FASTBIN_INLINE uint32_t less_bits(Floats a, Floats b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ)));
}

FASTBIN_INLINE Quads multiply_low(Quads a, Quads b) { return (Quads)_mm256_mul_epu32((__m256i)a, (__m256i)b); }

FASTBIN_INLINE Halves low_halves(Quads a, Quads b) { return (Halves)_mm256_shuffle_ps((__m256)a, (__m256)b, 0x88); }

}  // namespace avx2
}  // namespace fastbin

#include "cpu/mask_update_kernel.h"
