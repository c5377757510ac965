#include "cpu/gradient.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
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
namespace avx512bf16 {
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

GradientKernels kernels_for(bool bf16) {
#if defined(__x86_64__)
  if (bf16 && isa_has_bf16()) return avx512bf16::gradient_kernels();
#else
  static_cast<void>(bf16);
#endif
  return kGradientKernels.get()();
}

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
        depth_((batch + kernels.cell_samples - 1) / kernels.cell_samples),
        gy_bytes_(round_up(rows, kernels.micro_rows) * depth_ * kCellBytes),
        x_bytes_(round_up(cols, kernels.micro_cols) * depth_ * kCellBytes) {}

  int64_t depth() const { return depth_; }
  int64_t member_bytes() const { return gy_bytes_ + x_bytes_; }
  void allocate(int64_t members) { bytes_.reset(new std::byte[static_cast<size_t>(members * member_bytes())]); }

  std::byte* gy(int64_t member, int64_t row) {
    return bytes_.get() + member * member_bytes() + row * depth_ * kCellBytes;
  }
  std::byte* x(int64_t member, int64_t col) { return gy(member, 0) + gy_bytes_ + col * depth_ * kCellBytes; }

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
  int64_t batch_, rows_, cols_, depth_, gy_bytes_, x_bytes_;
  std::unique_ptr<std::byte[]> bytes_;
};

// out [members, rows, batch] = the transposes of columns [row, row + rows) of gy [members, batch, stride]; in squares
// of 16, so that what is read and what is written are whole cache lines, and few enough to stay in L1 whatever the
// strides.
void transpose_columns(const float* gy, int64_t stride, int64_t members, int64_t batch, int64_t row, int64_t rows,
                       float* out, int threads) {
  constexpr int64_t kSide = 16;
  const int64_t strips = (rows + kSide - 1) / kSide;
  parallel_for(threads, members * strips, [&](int64_t task) {
    const float* from = gy + task / strips * batch * stride + row;
    float* to = out + task / strips * rows * batch;
    const int64_t first = task % strips * kSide;
    const int64_t last = std::min(first + kSide, rows);
    for (int64_t b0 = 0; b0 < batch; b0 += kSide) {
      const int64_t b1 = std::min(b0 + kSide, batch);
      for (int64_t r = first; r < last; ++r) {
        for (int64_t b = b0; b < b1; ++b) to[r * batch + b] = from[b * stride + r];
      }
    }
  });
}

}  // namespace

void mask_grad_update_f32(Rule rule, const UpdateTensors& tensors, const float* gy, const float* x, int64_t population,
                          int64_t batch, int64_t rows, int64_t cols, bool sample, bool bf16, int threads) {
  const MaskUpdate update(rule, tensors, population, rows, cols, sample);
  std::fill_n(tensors.flips, population, int64_t{0});
  if (rows == 0 || cols == 0) return;
  const GradientKernels kernels = kernels_for(bf16);
  Panels panels(kernels, batch, rows, cols);
  // Members in groups, so that their panels take 64 MB or those of a single one.
  constexpr int64_t kGroupBytes = int64_t{1} << 26;
  const int64_t group = std::clamp<int64_t>(kGroupBytes / std::max<int64_t>(panels.member_bytes(), 1), 1,
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
      tile.depth = panels.depth();
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

// With x as bits the product is bit_linear of gyᵀ with xᵀ for weights, for some members, or some rows of one, at a
// time: 4 MB of the gradient, which L3 holds, for every block costs a few forks and joins.
void mask_grad_update_bits(Rule rule, const UpdateTensors& tensors, const float* gy, const uint32_t* x_words,
                           int64_t population, int64_t batch, int64_t rows, int64_t cols, bool sample, int threads) {
  const MaskUpdate update(rule, tensors, population, rows, cols, sample);
  std::fill_n(tensors.flips, population, int64_t{0});
  if (population == 0 || rows == 0 || cols == 0) return;
  constexpr int64_t kBlockFloats = int64_t{1} << 20;
  constexpr int64_t kMinRows = 128;   // bit_linear wants many samples to a decoded word
  constexpr int64_t kUpdateRows = 8;  // of a task of the update
  const int64_t block_rows = std::min(rows, std::max(kMinRows, kBlockFloats / cols));
  const int64_t group = std::clamp<int64_t>(kBlockFloats / (rows * cols), 1, population);
  const int64_t xt_stride = cols * words_for(batch);
  const std::unique_ptr<uint32_t[]> xt_words(new uint32_t[static_cast<size_t>(population * xt_stride)]);
  const std::unique_ptr<float[]> gyt(new float[static_cast<size_t>(group * block_rows * batch)]);
  const std::unique_ptr<float[]> grad(new float[static_cast<size_t>(group * block_rows * cols)]);
  transpose_bits(x_words, population, batch, cols, xt_words.get(), threads);
  for (int64_t first = 0; first < population; first += group) {
    const int64_t members = std::min(group, population - first);
    for (int64_t row = 0; row < rows; row += block_rows) {
      const int64_t count = std::min(block_rows, rows - row);
      transpose_columns(gy + first * batch * rows, rows, members, batch, row, count, gyt.get(), threads);
      bit_linear_f32(gyt.get(), xt_words.get() + first * xt_stride, grad.get(), members, count, cols, batch, threads);
      const BlockGrid grid(members, count, cols, kUpdateRows, cols);
      std::vector<int64_t> flips(static_cast<size_t>(grid.tasks));
      parallel_for(threads, grid.tasks, [&](int64_t task) {
        const BlockGrid::Block b = grid.block(task);
        const float* block_grad = grad.get() + (b.member * count + b.row) * cols;
        flips[static_cast<size_t>(task)] =
            update.apply(first + b.member, row + b.row, b.rows, 0, cols, block_grad, cols);
      });
      grid.sum_by_member(flips, tensors.flips + first);
    }
  }
}

}  // namespace fastbin
