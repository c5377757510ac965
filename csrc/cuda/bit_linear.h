// Products of a few real samples and bits, y = x wᵀ, on the GPU.
#pragma once

#include "cuda/launch.h"

namespace fastbin::cuda {

enum class Scalar { kFloat32, kBFloat16, kFloat16, kInt8 };

constexpr int kChunkWords = 16;    // words of a row that share a scale: 512 inputs
constexpr int kMostColumns = 128;  // bit planes of all samples together

// Bit planes that a value of x becomes.
__host__ __device__ constexpr int planes_of(Scalar type) { return type == Scalar::kInt8 ? 8 : 32; }

// x [population, batch, inputs] of `type`, w [population, rows, ceil(inputs / 32)] words; all sizes are at least 1, and
// batch * planes_of(type) at most kMostColumns. y [population, batch, rows] is of x's type, int32 for int8.
// `workspace` holds workspace_words words and starts on 16 bytes.
struct BitLinear {
  const void* x;
  const uint32_t* w;
  void* y;
  uint32_t* workspace;
  int64_t population, batch, rows, inputs;
  Scalar type;

  __host__ __device__ int64_t words() const { return (inputs + 31) / 32; }
  __host__ __device__ int64_t chunks() const { return (words() + kChunkWords - 1) / kChunkWords; }
  // Columns of bit planes, in whole tiles of eight.
  __host__ __device__ int64_t columns() const { return batch * planes_of(type); }
  // Words of the bit planes [population, chunks, columns, kChunkWords]; the scales [population, chunks, batch] follow.
  __host__ __device__ int64_t plane_words() const { return population * chunks() * columns() * kChunkWords; }
  int64_t workspace_words() const { return plane_words() + population * chunks() * batch; }
  Shape shape(const char* kernel) const { return {kernel, population, batch, rows, words()}; }
};

// Compute capability 8.0 to 9.0. Throws std::runtime_error for another device, or for a CUDA error.
void bit_linear_vector(const BitLinear& product, const Queue& queue);

}  // namespace fastbin::cuda
