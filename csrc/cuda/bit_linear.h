// Products of a few real samples and bits, y = x wᵀ, on the GPU.
#pragma once

#include "cuda/launch.h"

namespace fastbin::cuda {

enum class Scalar { kFloat32, kBFloat16, kFloat16, kInt8 };

// x [population, batch, inputs] of `type`, w [population, rows, ceil(inputs / 32)] words; all sizes are at least 1.
// y [population, batch, rows] is of x's type, int32 for int8.
struct BitLinear {
  const void* x;
  const uint32_t* w;
  void* y;
  int64_t population, batch, rows, inputs;
  Scalar type;

  __host__ __device__ int64_t words() const { return (inputs + 31) / 32; }
  Shape shape(const char* kernel) const { return {kernel, population, batch, rows, words()}; }
};

// Of any batch, and fast for up to 16 samples: w is read once for as many. Compute capability 8.0 and later. Throws
// std::runtime_error for float32, for an older device, or for a CUDA error.
void bit_linear_vector(const BitLinear& product, const Queue& queue);

}  // namespace fastbin::cuda
