// Tensor maps: what the copy engine of compute capability 9.0 wants to know of a matrix.
#pragma once

#include <cuda.h>

#include "cuda/launch.h"

namespace fastbin::cuda {

using TensorMap = CUtensorMap;

// The map of words [population, rows, words], copied in boxes of box_rows rows of 32 words, 128 bytes, zeros outside,
// in the 128-byte swizzle: bits 4..6 of a byte's address are exclusive-ored with bits 7..9. `words` is a multiple of 4
// and `matrix` starts on 16 bytes.
inline TensorMap make_tensor_map(const uint32_t* matrix, int64_t population, int64_t rows, int64_t words,
                                 unsigned box_rows, const Shape& shape) {
  // Through the runtime, so that the library does not depend on libcuda and loads on machines without a driver.
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found{};
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found), shape);
  if (found != cudaDriverEntryPointSuccess) {
    throw std::runtime_error(std::string(shape.kernel) + ": this driver has no cuTensorMapEncodeTiled");
  }
  const auto as_unsigned = [](int64_t size) { return static_cast<cuuint64_t>(size); };
  const cuuint64_t sizes[3] = {as_unsigned(words), as_unsigned(rows), as_unsigned(population)};
  const cuuint64_t strides[2] = {4 * as_unsigned(words), 4 * as_unsigned(words * rows)};  // in bytes
  const cuuint32_t box[3] = {32, box_rows, 1};
  const cuuint32_t steps[3] = {1, 1, 1};
  TensorMap map;
  const CUresult error = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry)(
      &map, CU_TENSOR_MAP_DATA_TYPE_UINT32, 3, const_cast<uint32_t*>(matrix), sizes, strides, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (error == CUDA_SUCCESS) return map;
  throw std::runtime_error(std::string(shape.kernel) + ": cuTensorMapEncodeTiled refused [" +
                           std::to_string(population) + ", " + std::to_string(rows) + ", " + std::to_string(words) +
                           "] words (CUresult " + std::to_string(static_cast<int>(error)) + ")");
}

}  // namespace fastbin::cuda
