// Products of many real samples and bits, y = x wᵀ or y = x w, on the tensor cores of compute capability 9.0.
#pragma once

#include "cuda/bit_linear.h"

namespace fastbin::cuda {

// x [population, batch, inner] of `type`, not float32; w [population, outputs, ceil(inner / 32)] words, or
// [population, inner, ceil(outputs / 32)] if transposed; y [population, batch, outputs] of x's type, int32 for int8.
// All sizes are at least 1; x starts on 16 bytes and its rows are a multiple of 16 bytes long.
struct BitProduct {
  const void* x;
  const uint32_t* w;
  void* y;
  int64_t population, batch, inner, outputs;
  Scalar type;
  bool transposed;

  __host__ __device__ int64_t words() const { return ((transposed ? outputs : inner) + 31) / 32; }  // of a row of w
  // Whether whole 16-byte chunks of w's rows can be copied.
  __host__ __device__ bool whole_chunks() const { return words() % 4 == 0 && reinterpret_cast<uintptr_t>(w) % 16 == 0; }
  Shape shape(const char* kernel) const { return {kernel, population, batch, outputs, words()}; }
};

// Throws std::runtime_error for another device than one of compute capability 9.0, for operands that the copy engine
// does not take, or for a CUDA error.
void bit_linear_wgmma(const BitProduct& product, const Queue& queue);

}  // namespace fastbin::cuda
