// What the driver of gyᵀ x hands to the kernels: plain data, for the per-instruction-set files include this too.
#pragma once

#include <cstdint>

namespace fastbin {

// A task's working set is a tile of the gradient (84 x 192, 63 KB) and the packed panels of 256 samples of gy (84 KB)
// and of x (192 KB): 339 KB, within the 512 KB of L2 of the smallest CPUs in view. 84 is a multiple of every
// micro-tile's rows (6 and 14), 192 of every micro-tile's columns (8, 16 and 32) and of a word.
constexpr int64_t kTileRows = 84;
constexpr int64_t kTileCols = 192;
constexpr int64_t kTileDepth = 256;
constexpr int64_t kTileFloats = kTileRows * kTileCols;
constexpr int64_t kPanelFloats = (kTileRows + kTileCols) * kTileDepth;

struct GradientTile {
  const float* gy;  // the block's first column of gy [batch, R]
  const float* x;   // the block's first column of x [batch, C]
  int64_t gy_stride;
  int64_t x_stride;
  int64_t batch;
  int64_t rows;   // <= kTileRows
  int64_t cols;   // <= kTileCols
  float* panels;  // scratch of kPanelFloats
  float* tile;    // out, kTileFloats: rows x cols of gyᵀ x, kTileCols from row to row; the rest is scratch
};

using GradientKernel = void (*)(const GradientTile&);

}  // namespace fastbin
