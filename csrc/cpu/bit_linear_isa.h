// The kernels behind bit_linear, one set for each instruction set. All pointers are to the first element of the block
// at hand; `scratch` is 64-byte aligned and the caller's.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace fastbin {

constexpr int64_t kGroupInputs = 30;  // inputs to a code word: 5 tables of 6, 6 of 5 or 10 of 3

// Bytes of scratch for a block of `rows` outputs: tables and transposed inputs (up to 64 KiB), accumulators of 64 bytes
// an output, and for int8 the wide ones of 128 more.
constexpr int64_t kTableBytes = 64 * 1024;
constexpr int64_t kRowBytes = 192;

// Large batches: the matrix as code words [groups][outputs], outputs first + [0, count) of this call.
using RepackFn = void (*)(const uint32_t* w, int64_t rows, int64_t cols, int64_t first, int64_t count, uint32_t* codes);

// y [samples][y_stride] of `samples` <= 16 (fp32) or 32 (int8) and `outputs` code words [groups][code_stride].
template <typename X, typename Y>
using BlockFn = void (*)(const X* x, int64_t samples, int64_t inputs, const uint32_t* codes, int64_t code_stride,
                         int64_t outputs, Y* y, int64_t y_stride, void* scratch);

// Small batches: outputs first + [0, count) straight from the matrix; x [samples][inputs], y [samples][outputs].
template <typename X, typename Y>
using SmallFn = void (*)(const X* x, const uint32_t* w, Y* y, int64_t samples, int64_t rows, int64_t cols,
                         int64_t first, int64_t count, void* scratch);

#define FASTBIN_DECLARE_BIT_LINEAR(isa)                                                                                \
  namespace isa {                                                                                                      \
  void bit_linear_repack(const uint32_t*, int64_t, int64_t, int64_t, int64_t, uint32_t*);                              \
  void bit_linear_repack_t(const uint32_t*, int64_t, int64_t, int64_t, int64_t, uint32_t*);                            \
  void bit_linear_block(const float*, int64_t, int64_t, const uint32_t*, int64_t, int64_t, float*, int64_t, void*);    \
  void bit_linear_block(const int8_t*, int64_t, int64_t, const uint32_t*, int64_t, int64_t, int32_t*, int64_t, void*); \
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
