// The functions that bit_linear_isa.h declares for a few samples, by the small_product of the header that includes
// this.
#pragma once

#include "cpu/bit_linear_isa.h"

namespace fastbin {
namespace FASTBIN_ISA_NAMESPACE {

int64_t bit_linear_small_batch() { return kSmallBatch; }

void bit_linear_small(const float* x, const uint32_t* w, float* y, int64_t samples, int64_t rows, int64_t cols,
                      int64_t first, int64_t count, void* scratch) {
  small_product(x, w, y, samples, rows, cols, first, count, false, scratch);
}

void bit_linear_small(const int8_t* x, const uint32_t* w, int32_t* y, int64_t samples, int64_t rows, int64_t cols,
                      int64_t first, int64_t count, void* scratch) {
  small_product(x, w, y, samples, rows, cols, first, count, false, scratch);
}

void bit_linear_small_t(const float* x, const uint32_t* w, float* y, int64_t samples, int64_t rows, int64_t cols,
                        int64_t first, int64_t count, void* scratch) {
  small_product(x, w, y, samples, rows, cols, first, count, true, scratch);
}

void bit_linear_small_t(const int8_t* x, const uint32_t* w, int32_t* y, int64_t samples, int64_t rows, int64_t cols,
                        int64_t first, int64_t count, void* scratch) {
  small_product(x, w, y, samples, rows, cols, first, count, true, scratch);
}

}  // namespace FASTBIN_ISA_NAMESPACE
}  // namespace fastbin
