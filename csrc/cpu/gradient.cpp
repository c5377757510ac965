#include "cpu/gradient.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "cpu/bit_linear.h"
#include "cpu/bits.h"
#include "cpu/gradient_tile.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace fastbin {

namespace scalar {
void gradient_tile(const GradientTile& tile);
}
namespace avx2 {
void gradient_tile(const GradientTile& tile);
}
namespace avx512 {
void gradient_tile(const GradientTile& tile);
}

namespace {

constexpr PerIsa<GradientKernel> kGradientTile = {
    scalar::gradient_tile,
#if defined(__x86_64__)
    avx2::gradient_tile,
    avx512::gradient_tile,
#endif
};

// out [rows, batch] = the transpose of columns [row, row + rows) of gy [batch, stride]; in squares of 16, so that what
// is read and what is written are whole cache lines, and few enough of them to stay in L1 whatever the strides.
void transpose_columns(const float* gy, int64_t stride, int64_t batch, int64_t row, int64_t rows, float* out,
                       int threads) {
  constexpr int64_t kSide = 16;
  parallel_for(threads, (rows + kSide - 1) / kSide, [&](int64_t strip) {
    const int64_t first = strip * kSide;
    const int64_t last = std::min(first + kSide, rows);
    for (int64_t b0 = 0; b0 < batch; b0 += kSide) {
      const int64_t b1 = std::min(b0 + kSide, batch);
      for (int64_t r = first; r < last; ++r) {
        for (int64_t b = b0; b < b1; ++b) out[r * batch + b] = gy[b * stride + row + r];
      }
    }
  });
}

}  // namespace

void mask_grad_update_f32(Rule rule, const UpdateTensors& tensors, const float* gy, const float* x, int64_t population,
                          int64_t batch, int64_t rows, int64_t cols, bool sample, int threads) {
  const MaskUpdate update(rule, tensors, population, rows, cols, sample);
  const BlockGrid grid(population, rows, cols, kTileRows, kTileCols);
  const GradientKernel gradient_tile = kGradientTile.get();
  const int64_t workers = std::min<int64_t>(std::max(threads, 1), grid.tasks);
  // Scratch for each worker, which takes tasks until there are no more.
  constexpr int64_t kScratch = kPanelFloats + kTileFloats;
  std::vector<float> scratch(static_cast<size_t>(workers * kScratch));
  std::vector<int64_t> flips(static_cast<size_t>(grid.tasks));
  std::atomic<int64_t> next{0};
  parallel_for(threads, workers, [&](int64_t worker) {
    GradientTile tile{};
    tile.gy_stride = rows;
    tile.x_stride = cols;
    tile.batch = batch;
    tile.panels = scratch.data() + worker * kScratch;
    tile.tile = tile.panels + kPanelFloats;
    for (int64_t task = next++; task < grid.tasks; task = next++) {
      const BlockGrid::Block b = grid.block(task);
      tile.gy = gy + b.member * batch * rows + b.row;
      tile.x = x + b.member * batch * cols + b.col;
      tile.rows = b.rows;
      tile.cols = b.cols;
      gradient_tile(tile);
      flips[static_cast<size_t>(task)] = update.apply(b.member, b.row, b.rows, b.col, b.cols, tile.tile, kTileCols);
    }
  });
  grid.sum_by_member(flips, tensors.flips, population);
}

// With x as bits the product is bit_linear of gyᵀ with xᵀ for weights: a block of rows at a time.
void mask_grad_update_bits(Rule rule, const UpdateTensors& tensors, const float* gy, const uint32_t* x_words,
                           int64_t population, int64_t batch, int64_t rows, int64_t cols, bool sample, int threads) {
  constexpr int64_t kBlockRows = 128;
  constexpr int64_t kUpdateRows = 8;  // of a task of the update
  const MaskUpdate update(rule, tensors, population, rows, cols, sample);
  const int64_t xt_stride = cols * words_for(batch);
  std::vector<uint32_t> xt_words(static_cast<size_t>(population * xt_stride));
  transpose_bits(x_words, population, batch, cols, xt_words.data(), threads);
  const int64_t block_rows = std::min(kBlockRows, rows);
  std::vector<float> gyt(static_cast<size_t>(block_rows * batch));
  std::vector<float> tile(static_cast<size_t>(block_rows * cols));
  for (int64_t p = 0; p < population; ++p) {
    std::atomic<int64_t> flips{0};
    for (int64_t row = 0; row < rows; row += kBlockRows) {
      const int64_t count = std::min(kBlockRows, rows - row);
      transpose_columns(gy + p * batch * rows, rows, batch, row, count, gyt.data(), threads);
      bit_linear_f32(gyt.data(), xt_words.data() + p * xt_stride, tile.data(), 1, count, cols, batch, threads);
      parallel_for(threads, (count + kUpdateRows - 1) / kUpdateRows, [&](int64_t task) {
        const int64_t r = task * kUpdateRows;
        flips += update.apply(p, row + r, std::min(kUpdateRows, count - r), 0, cols, tile.data() + r * cols, cols);
      });
    }
    tensors.flips[p] = flips;
  }
}

}  // namespace fastbin
