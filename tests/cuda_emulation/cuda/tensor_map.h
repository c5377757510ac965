// csrc/cuda/tensor_map.h for the CPU.
#pragma once

#include "cuda/launch.h"

namespace fastbin::cuda {

struct TensorMap {
  const uint32_t* matrix;
  int64_t population, rows, words;
  unsigned box_rows;
};

inline TensorMap make_tensor_map(const uint32_t* matrix, int64_t population, int64_t rows, int64_t words,
                                 unsigned box_rows, const Shape& shape) {
  // What the driver refuses.
  if (reinterpret_cast<uintptr_t>(matrix) % 16 != 0 || words % 4 != 0 || words == 0 || box_rows > 256) {
    check(cudaErrorInvalidValue, shape);
  }
  return {matrix, population, rows, words, box_rows};
}

}  // namespace fastbin::cuda
