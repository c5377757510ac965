#define FASTBIN_ISA_NAMESPACE avx2
#include <immintrin.h>

#include "cpu/simd.h"

namespace fastbin {
namespace avx2 {

// 6 x 2 sums, two inputs and a gradient are 15 of the 16 registers.
typedef float Floats __attribute__((vector_size(32)));
using Cells = Floats;
constexpr int kCellSamples = 1;
constexpr int kMicroRows = 6;

FASTBIN_INLINE float cell(float sample, float) { return sample; }

FASTBIN_INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }

}  // namespace avx2
}  // namespace fastbin

#include "cpu/gradient_kernel.h"
