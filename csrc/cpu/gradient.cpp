#include "cpu/gradient.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "cpu/bit_linear.h"
#include "cpu/bits.h"
#include "cpu/gradient_tile.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace fastbin {

namespace scalar {
GradientKernels gradient_kernels();
}
namespace avx2 {
GradientKernels gradient_kernels();
}
namespace avx512 {
GradientKernels gradient_kernels();
}

namespace {

constexpr PerIsa<GradientKernels (*)()> kGradientKernels = {
    scalar::gradient_kernels,
#if defined(__x86_64__)
    avx2::gradient_kernels,
    avx512::gradient_kernels,
#endif
};

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// gy and x of some members as panels. Each is packed once: strided reads of short rows, from pages that no hardware
// prefetcher crosses, are not for a loop over tiles.
class Panels {
 public:
  Panels(const GradientKernels& kernels, int64_t batch, int64_t rows, int64_t cols)
      : kernels_(kernels),
        batch_(batch),
        rows_(rows),
        cols_(cols),
        gy_floats_(round_up(rows, kernels.micro_rows) * batch),
        x_floats_(round_up(cols, kernels.micro_cols) * batch) {}

  int64_t member_floats() const { return gy_floats_ + x_floats_; }
  void allocate(int64_t members) { floats_.reset(new float[static_cast<size_t>(members * member_floats())]); }

  float* gy(int64_t member, int64_t row) { return floats_.get() + member * member_floats() + row * batch_; }
  float* x(int64_t member, int64_t col) { return gy(member, 0) + gy_floats_ + col * batch_; }

  void pack(const float* gy_in, const float* x_in, int64_t members, int threads) {
    const int64_t row_tasks = (rows_ + kTileRows - 1) / kTileRows;
    const int64_t per_member = row_tasks + (cols_ + kTileCols - 1) / kTileCols;
    parallel_for(threads, members * per_member, [&](int64_t task) {
      const int64_t m = task / per_member;
      const int64_t i = task % per_member;
      if (i < row_tasks) {
        const int64_t r = i * kTileRows;
        kernels_.pack_gy(gy_in + m * batch_ * rows_ + r, rows_, batch_, std::min(kTileRows, rows_ - r), gy(m, r));
      } else {
        const int64_t c = (i - row_tasks) * kTileCols;
        kernels_.pack_x(x_in + m * batch_ * cols_ + c, cols_, batch_, std::min(kTileCols, cols_ - c), x(m, c));
      }
    });
  }

 private:
  GradientKernels kernels_;
  int64_t batch_, rows_, cols_, gy_floats_, x_floats_;
  std::unique_ptr<float[]> floats_;
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
  std::fill_n(tensors.flips, population, int64_t{0});
  if (rows == 0 || cols == 0) return;
  const GradientKernels kernels = kGradientKernels.get()();
  Panels panels(kernels, batch, rows, cols);
  // Members in groups, so that their panels take 64 MB or those of a single one.
  constexpr int64_t kGroupFloats = int64_t{1} << 24;
  const int64_t group = std::clamp<int64_t>(kGroupFloats / std::max<int64_t>(panels.member_floats(), 1), 1,
                                            std::max<int64_t>(population, 1));
  panels.allocate(group);
  // A tile for each worker, which takes tasks until there are no more.
  const int64_t workers = std::max(threads, 1);
  const std::unique_ptr<float[]> tiles(new float[static_cast<size_t>(workers * kTileFloats)]);
  for (int64_t first = 0; first < population; first += group) {
    const int64_t members = std::min(group, population - first);
    panels.pack(gy + first * batch * rows, x + first * batch * cols, members, threads);
    const BlockGrid grid(members, rows, cols, kTileRows, kTileCols);
    std::vector<int64_t> flips(static_cast<size_t>(grid.tasks));
    std::atomic<int64_t> next{0};
    parallel_for(threads, std::min(workers, grid.tasks), [&](int64_t worker) {
      GradientTile tile{};
      tile.batch = batch;
      tile.tile = tiles.get() + worker * kTileFloats;
      tile.coming_stride = cols;
      for (int64_t task = next++; task < grid.tasks; task = next++) {
        const BlockGrid::Block b = grid.block(task);
        const int64_t member = first + b.member;
        const int64_t element = (member * rows + b.row) * cols + b.col;
        tile.gy_panels = panels.gy(b.member, b.row);
        tile.x_panels = panels.x(b.member, b.col);
        tile.rows = b.rows;
        tile.cols = b.cols;
        tile.coming[0] = offset(tensors.scores, element);
        tile.coming[1] = offset(tensors.buffer0, element);
        tile.coming[2] = offset(tensors.buffer1, element);
        kernels.tile(tile);
        flips[static_cast<size_t>(task)] = update.apply(member, b.row, b.rows, b.col, b.cols, tile.tile, kTileCols);
      }
    });
    grid.sum_by_member(flips, tensors.flips + first);
  }
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
