// What the driver of gyᵀ x hands to the kernels: plain data, for the per-instruction-set files include this too.
#pragma once

#include <cstdint>

namespace fastbin {

// A task's working set in L2 is a tile of the gradient (84 x 192, 63 KB), what the update then wants of scores and two
// buffers (189 KB) and 256 samples of gy (84 KB), 336 KB in all, of the 512 KB that the smallest CPUs in view have. 84
// is a multiple of every micro-tile's rows (6 and 14), 192 of every micro-tile's columns (8, 16 and 32) and of a word.
constexpr int64_t kTileRows = 84;
constexpr int64_t kTileCols = 192;
constexpr int64_t kTileFloats = kTileRows * kTileCols;

struct GradientTile {
  const void* gy_panels;   // the panels from the tile's first row on
  const void* x_panels;    // the panels from the tile's first column on
  int64_t depth;           // cells to a column of a panel
  int64_t rows;            // <= kTileRows
  int64_t cols;            // <= kTileCols
  float* tile;             // out, kTileFloats: rows x cols of gyᵀ x, kTileCols from row to row; the rest is scratch
  const float* coming[3];  // rows x cols elements each, or null, that are wanted next
  int64_t coming_stride;
};

// Packs `width` columns of a [batch, stride] matrix as panels [panel][depth][columns of a panel] of cells, filled up
// with 0. A cell of kCellBytes holds the samples that one instruction takes: a float, or two neighbours as bf16. The
// panel of column c, where one starts there, is c * depth cells on.
using PackKernel = void (*)(const float* matrix, int64_t stride, int64_t batch, int64_t width, void* panels);
constexpr int64_t kCellBytes = 4;

struct GradientKernels {
  int64_t cell_samples;
  int64_t micro_rows;  // columns of gy to a panel
  int64_t micro_cols;  // columns of x to a panel
  PackKernel pack_gy;
  PackKernel pack_x;
  void (*tile)(const GradientTile&);
};

}  // namespace fastbin
