#define FASTBIN_ISA_NAMESPACE avx512
#include "cpu/avx512.h"
#include "cpu/simd.h"

namespace fastbin {
namespace avx512 {

// 14 x 2 sums, two inputs and a gradient are 31 of the 32 registers.
typedef float Floats __attribute__((vector_size(64)));
using Cells = Floats;
constexpr int kCellSamples = 1;
constexpr int kMicroRows = 14;

FASTBIN_INLINE float cell(float sample, float) { return sample; }

FASTBIN_INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }

}  // namespace avx512
}  // namespace fastbin

#include "cpu/gradient_kernel.h"
