// A tile of gyᵀ x. The batch is the reduction, and both operands have it as their outer dimension: an outer product of
// a few gradients with a few inputs per sample needs no transposition, only panels that are read in sequence.
//
// The including file defines FASTBIN_ISA_NAMESPACE and, inside fastbin::FASTBIN_ISA_NAMESPACE and before this header:
//   Floats                  a vector of floats with the compiler's operators
//   multiply_add(a, b, c)   a * b + c, fused where the instruction set can
//   kMicroRows              rows of the micro-tile, whose columns are two vectors
#pragma once

#include "cpu/gradient_tile.h"
#include "cpu/simd.h"

namespace fastbin {
namespace FASTBIN_ISA_NAMESPACE {

constexpr int kLanes = sizeof(Floats) / sizeof(float);
constexpr int kMicroCols = 2 * kLanes;
static_assert(kTileRows % kMicroRows == 0 && kTileCols % kMicroCols == 0, "a tile is whole micro-tiles");

FASTBIN_INLINE Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

FASTBIN_INLINE void store(float* p, Floats v) { std::memcpy(p, &v, sizeof(v)); }

template <int kWidth>
void pack_panels(const float* matrix, int64_t stride, int64_t batch, int64_t width, float* panels) {
  for (int64_t b = 0; b < batch; ++b) {
    const float* row = matrix + b * stride;
    float* out = panels + b * kWidth;
    int64_t i = 0;
    for (; i + kWidth <= width; i += kWidth, out += batch * kWidth) std::memcpy(out, row + i, kWidth * sizeof(float));
    if (i < width) {
      for (int j = 0; j < kWidth; ++j) out[j] = i + j < width ? row[i + j] : 0.0f;
    }
  }
}

// tile[kMicroRows][kMicroCols] (+)= the product of two panels. Per sample: two loads of x, kMicroRows broadcasts of gy
// and 2 * kMicroRows multiply-adds, all sums in registers.
void micro_tile(const float* gy, const float* x, int64_t depth, bool accumulate, float* tile) {
  Floats sum[kMicroRows][2] = {};
  for (int64_t d = 0; d < depth; ++d) {
    const Floats x0 = load(x + d * kMicroCols);
    const Floats x1 = load(x + d * kMicroCols + kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kMicroRows; ++i) {
      const Floats g = gy[d * kMicroRows + i] - Floats{};
      sum[i][0] = multiply_add(g, x0, sum[i][0]);
      sum[i][1] = multiply_add(g, x1, sum[i][1]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kMicroRows; ++i) {
    float* row = tile + i * kTileCols;
    store(row, accumulate ? load(row) + sum[i][0] : sum[i][0]);
    store(row + kLanes, accumulate ? load(row + kLanes) + sum[i][1] : sum[i][1]);
  }
}

// Asks for the elements of a micro-tile in what the update reads next: by the time that the product is done, they are
// in L2.
FASTBIN_INLINE void prefetch(const GradientTile& t, int64_t r, int64_t c) {
  const int64_t rows = t.rows - r < kMicroRows ? t.rows - r : kMicroRows;
  for (const float* base : t.coming) {
    if (base == nullptr) continue;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = c; j < c + kMicroCols && j < t.cols; j += 16) {
        __builtin_prefetch(base + (r + i) * t.coming_stride + j, 0, 2);
      }
    }
  }
}

// The order of each sum is that of the batch whatever the tiling, so results do not depend on threads.
void gradient_tile(const GradientTile& t) {
  // 256 samples of a panel of x (16 KB at 16 columns) stay in L1 while the panels of gy pass by from L2.
  constexpr int64_t kDepth = 256;
  for (int64_t b = 0; b < t.batch; b += kDepth) {
    const int64_t depth = t.batch - b < kDepth ? t.batch - b : kDepth;
    const bool last = b + depth == t.batch;
    for (int64_t c = 0; c < t.cols; c += kMicroCols) {
      for (int64_t r = 0; r < t.rows; r += kMicroRows) {
        if (last) prefetch(t, r, c);
        micro_tile(t.gy_panels + r * t.batch + b * kMicroRows, t.x_panels + c * t.batch + b * kMicroCols, depth, b > 0,
                   t.tile + r * kTileCols + c);
      }
    }
  }
  if (t.batch == 0) std::memset(t.tile, 0, static_cast<size_t>(kTileFloats) * sizeof(float));
}

GradientKernels gradient_kernels() {
  return {kMicroRows, kMicroCols, pack_panels<kMicroRows>, pack_panels<kMicroCols>, gradient_tile};
}

}  // namespace FASTBIN_ISA_NAMESPACE
}  // namespace fastbin
