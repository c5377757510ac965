#define FASTBIN_ISA_NAMESPACE scalar
#include "cpu/simd.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace fastbin {
namespace scalar {

typedef float Floats __attribute__((vector_size(16)));
typedef uint64_t Quads __attribute__((vector_size(16)));
typedef uint32_t Halves __attribute__((vector_size(16)));

constexpr uint64_t kBlockOfLane[8] = {0, 1, 2, 3, 4, 5, 6, 7};

#if defined(__SSE2__)

FASTBIN_INLINE Floats square_root(Floats a) { return _mm_sqrt_ps(a); }

FASTBIN_INLINE Floats minimum(Floats a, Floats b) { return _mm_min_ps(a, b); }

FASTBIN_INLINE Floats maximum(Floats a, Floats b) { return _mm_max_ps(a, b); }

FASTBIN_INLINE uint32_t less_bits(Floats a, Floats b) {
  return static_cast<uint32_t>(_mm_movemask_ps(_mm_cmplt_ps(a, b)));
}

FASTBIN_INLINE Quads multiply_low(Quads a, Quads b) { return (Quads)_mm_mul_epu32((__m128i)a, (__m128i)b); }

FASTBIN_INLINE Halves low_halves(Quads a, Quads b) { return (Halves)_mm_shuffle_ps((__m128)a, (__m128)b, 0x88); }

#else

FASTBIN_INLINE Floats square_root(Floats a) {
  for (int i = 0; i < 4; ++i) a[i] = __builtin_sqrtf(a[i]);
  return a;
}

FASTBIN_INLINE Floats minimum(Floats a, Floats b) { return a < b ? a : b; }

FASTBIN_INLINE Floats maximum(Floats a, Floats b) { return a > b ? a : b; }

FASTBIN_INLINE uint32_t less_bits(Floats a, Floats b) {
  uint32_t bits = 0;
  for (int i = 0; i < 4; ++i) bits |= static_cast<uint32_t>(a[i] < b[i]) << i;
  return bits;
}

FASTBIN_INLINE Quads multiply_low(Quads a, Quads b) { return (a & 0xffffffffu) * (b & 0xffffffffu); }

FASTBIN_INLINE Halves low_halves(Quads a, Quads b) {
  return Halves{static_cast<uint32_t>(a[0]), static_cast<uint32_t>(a[1]), static_cast<uint32_t>(b[0]),
                static_cast<uint32_t>(b[1])};
}

#endif

}  // namespace scalar
}  // namespace fastbin

#include "cpu/mask_update_kernel.h"
