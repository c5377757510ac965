// Products of two bit matrices, y = a bᵀ over AND and popcount, on the GPU.
#pragma once

#include "cuda/launch.h"

namespace fastbin::cuda {

// a [population, rows_a, words] and b [population, rows_b, words]; population and rows are at least 1.
// Without thresholds y is int32 [population, rows_a, rows_b], the counts. With them y is packed like a and b,
// [population, rows_a, ceil(rows_b / 32)] words: bit (p, i, j) is count > thresholds[p * member_stride + i * row_stride
// + j * column_stride], strides counted in elements. All addresses are on the queue's device, and y's is a multiple
// of 16.
struct BitMatmul {
  const uint32_t* a;
  const uint32_t* b;
  int32_t* y;
  const int32_t* thresholds;
  int64_t population, rows_a, rows_b, words;
  int64_t member_stride, row_stride, column_stride;

  Shape shape(const char* kernel) const { return {kernel, population, rows_a, rows_b, words}; }
};

// By the kernel that suits the device: wgmma, bmma or popc.
// Throws std::runtime_error for a device before compute capability 8.0, or for a CUDA error.
void bit_matmul(const BitMatmul& product, const Queue& queue);

// Binary tensor cores through mma.sync, compute capability 8.0 to 9.0.
void bit_matmul_bmma(const BitMatmul& product, const Queue& queue);

// Binary tensor cores through wgmma, compute capability 9.0; only if wgmma_fits.
void bit_matmul_wgmma(const BitMatmul& product, const Queue& queue);
bool wgmma_fits(const BitMatmul& product);

// CUDA cores, any device.
void bit_matmul_popc(const BitMatmul& product, const Queue& queue);

}  // namespace fastbin::cuda
