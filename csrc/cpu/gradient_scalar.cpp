#define FASTBIN_ISA_NAMESPACE scalar
#include "cpu/simd.h"

namespace fastbin {
namespace scalar {

// 6 x 2 sums, two inputs and a gradient are 15 of the 16 registers.
typedef float Floats __attribute__((vector_size(16)));
using Cells = Floats;
constexpr int kCellSamples = 1;
constexpr int kMicroRows = 6;

FASTBIN_INLINE float cell(float sample, float) { return sample; }

FASTBIN_INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return a * b + c; }

}  // namespace scalar
}  // namespace fastbin

#include "cpu/gradient_kernel.h"
