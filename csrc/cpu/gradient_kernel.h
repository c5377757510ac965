// A tile of gyᵀ x. The batch is the reduction, and both operands have it as their outer dimension: an outer product of
// a few gradients with a few inputs per sample needs no transposition, only panels that are read in sequence.
//
// The including file defines FASTBIN_ISA_NAMESPACE and, inside fastbin::FASTBIN_ISA_NAMESPACE and before this header:
//   Floats                  a vector of floats with the compiler's operators
//   Cells                   a vector of what a lane holds of gy or x: a float, or two samples as bf16 in 32 bits
//   kCellSamples            1 or 2, the samples to a cell
//   multiply_add(a, b, c)   c + the products of the samples in a and b, fused where the instruction set can
//   cell(first, second)     of the samples, where there is a second
//   kMicroRows              rows of the micro-tile, whose columns are two vectors
#pragma once

#include <type_traits>

#include "cpu/gradient_tile.h"
#include "cpu/simd.h"

namespace fastbin {
namespace FASTBIN_ISA_NAMESPACE {

using Cell = std::remove_reference_t<decltype(Cells{}[0])>;
static_assert(sizeof(Cell) == kCellBytes && sizeof(Cells) == sizeof(Floats), "a cell of each operand to a sum");
constexpr int kLanes = sizeof(Floats) / sizeof(float);
constexpr int kMicroCols = 2 * kLanes;
static_assert(kTileRows % kMicroRows == 0 && kTileCols % kMicroCols == 0, "a tile is whole micro-tiles");

template <typename Vector = Floats, typename T>
FASTBIN_INLINE Vector load(const T* p) {
  Vector v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

FASTBIN_INLINE void store(float* p, Floats v) { std::memcpy(p, &v, sizeof(v)); }

template <int kWidth>
void pack_panels(const float* matrix, int64_t stride, int64_t batch, int64_t width, void* panels) {
  const int64_t depth = (batch + kCellSamples - 1) / kCellSamples;
  for (int64_t d = 0; d < depth; ++d) {
    const float* first = matrix + d * kCellSamples * stride;
    const bool paired = (d + 1) * kCellSamples <= batch;  // else the last of an odd number of samples goes with 0
    const float* second = paired ? first + (kCellSamples - 1) * stride : first;
    Cell* __restrict out = static_cast<Cell*>(panels) + d * kWidth;
    int64_t i = 0;
    for (; i + kWidth <= width; i += kWidth, out += depth * kWidth) {
      for (int j = 0; j < kWidth; ++j) out[j] = cell(first[i + j], paired ? second[i + j] : 0.0f);
    }
    if (i < width) {
      for (int j = 0; j < kWidth; ++j) {
        out[j] = i + j < width ? cell(first[i + j], paired ? second[i + j] : 0.0f) : Cell{0};
      }
    }
  }
}

// tile[kMicroRows][kMicroCols] (+)= the product of two panels. Per cell: two loads of x, kMicroRows broadcasts of gy
// and 2 * kMicroRows multiply-adds, all sums in registers.
void micro_tile(const Cell* gy, const Cell* x, int64_t depth, bool accumulate, float* tile) {
  Floats sum[kMicroRows][2] = {};
  for (int64_t d = 0; d < depth; ++d) {
    const Cells x0 = load<Cells>(x + d * kMicroCols);
    const Cells x1 = load<Cells>(x + d * kMicroCols + kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kMicroRows; ++i) {
      const Cells g = gy[d * kMicroRows + i] - Cells{};
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
  // 256 cells of a panel of x (16 KB at 16 columns) stay in L1 while the panels of gy pass by from L2.
  constexpr int64_t kDepth = 256;
  const Cell* gy = static_cast<const Cell*>(t.gy_panels);
  const Cell* x = static_cast<const Cell*>(t.x_panels);
  for (int64_t d = 0; d < t.depth; d += kDepth) {
    const int64_t depth = t.depth - d < kDepth ? t.depth - d : kDepth;
    const bool last = d + depth == t.depth;
    for (int64_t c = 0; c < t.cols; c += kMicroCols) {
      for (int64_t r = 0; r < t.rows; r += kMicroRows) {
        if (last) prefetch(t, r, c);
        micro_tile(gy + r * t.depth + d * kMicroRows, x + c * t.depth + d * kMicroCols, depth, d > 0,
                   t.tile + r * kTileCols + c);
      }
    }
  }
  if (t.depth == 0) std::memset(t.tile, 0, static_cast<size_t>(kTileFloats) * sizeof(float));
}

GradientKernels gradient_kernels() {
  return {kCellSamples, kMicroRows, kMicroCols, pack_panels<kMicroRows>, pack_panels<kMicroCols>, gradient_tile};
}

}  // namespace FASTBIN_ISA_NAMESPACE
}  // namespace fastbin
