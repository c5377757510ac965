// The kernels behind bit_linear, one set for each instruction set. All pointers are to the first element of the block
// at hand; `scratch` is 64-byte aligned and the caller's.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace fastbin {

// Bytes of scratch for a block of `rows` outputs: tables and transposed inputs (up to 192 KiB), accumulators of 64
// bytes an output, and for int8 the wide ones of 128 more.
constexpr int64_t kTableBytes = 192 * 1024;
constexpr int64_t kRowBytes = 192;

// Large batches: the matrix as codes [groups][outputs], outputs first + [0, count) of this call.
using RepackFn = void (*)(const uint32_t* w, int64_t rows, int64_t cols, int64_t first, int64_t count, void* codes);

// y [samples][y_stride] of a block of samples and `outputs` codes [groups][code_stride].
template <typename X, typename Y>
using BlockFn = void (*)(const X* x, int64_t samples, int64_t inputs, const void* codes, int64_t code_stride,
                         int64_t outputs, Y* y, int64_t y_stride, void* scratch);

struct BitLinearBlocks {
  int64_t group_inputs;  // to a code
  int64_t code_bytes;
  int64_t samples_f32, samples_i8;  // to a block
  RepackFn repack, repack_t;
  BlockFn<float, float> f32;
  BlockFn<int8_t, int32_t> i8;
};

// Small batches, up to small_batch() samples: outputs first + [0, count) straight from the matrix; x [samples][inputs],
// y [samples][outputs].
template <typename X, typename Y>
using SmallFn = void (*)(const X* x, const uint32_t* w, Y* y, int64_t samples, int64_t rows, int64_t cols,
                         int64_t first, int64_t count, void* scratch);

#define FASTBIN_DECLARE_BIT_LINEAR(isa)                                                                                \
  namespace isa {                                                                                                      \
  int64_t bit_linear_small_batch();                                                                                    \
  BitLinearBlocks bit_linear_blocks();                                                                                 \
  void bit_linear_small(const float*, const uint32_t*, float*, int64_t, int64_t, int64_t, int64_t, int64_t, void*);    \
  void bit_linear_small(const int8_t*, const uint32_t*, int32_t*, int64_t, int64_t, int64_t, int64_t, int64_t, void*); \
  void bit_linear_small_t(const float*, const uint32_t*, float*, int64_t, int64_t, int64_t, int64_t, int64_t, void*);  \
  void bit_linear_small_t(const int8_t*, const uint32_t*, int32_t*, int64_t, int64_t, int64_t, int64_t, int64_t,       \
                          void*);                                                                                      \
  }

FASTBIN_DECLARE_BIT_LINEAR(scalar)
FASTBIN_DECLARE_BIT_LINEAR(avx2)
FASTBIN_DECLARE_BIT_LINEAR(avx512)
#undef FASTBIN_DECLARE_BIT_LINEAR

}  // namespace fastbin
