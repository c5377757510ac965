#include "cpu/mask_update.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "cpu/bits.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace fastbin {

namespace scalar {
UpdateKernel update_kernel(Rule rule, bool sample);
}
namespace avx2 {
UpdateKernel update_kernel(Rule rule, bool sample);
}
namespace avx512 {
UpdateKernel update_kernel(Rule rule, bool sample);
}

namespace {

constexpr PerIsa<UpdateKernel (*)(Rule, bool)> kUpdateKernel = {
    scalar::update_kernel,
#if defined(__x86_64__)
    avx2::update_kernel,
    avx512::update_kernel,
#endif
};

UpdateConstants constants_of(Rule rule, const double* hyper, int64_t seed, int64_t t) {
  const double lr = hyper[0], c0 = hyper[3], c1 = hyper[4], c2 = hyper[5];
  UpdateConstants k{};
  k.inv_tau = static_cast<float>(1.0 / hyper[1]);
  k.step = static_cast<float>(lr);
  k.clip = static_cast<float>(hyper[2]);
  k.decay0 = static_cast<float>(c0);
  switch (rule) {
    case Rule::kSgd:
      break;
    case Rule::kAdam: {
      const double steps = static_cast<double>(t);
      k.gain0 = static_cast<float>(1.0 - c0);
      k.decay1 = static_cast<float>(c1);
      k.gain1 = static_cast<float>(1.0 - c1);
      k.step = static_cast<float>(lr / (1.0 - std::pow(c0, steps)));
      k.inv_sqrt_bias = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(c1, steps)));
      k.epsilon = static_cast<float>(c2);
      break;
    }
    case Rule::kBop:
      k.decay0 = static_cast<float>(1.0 - c0);
      k.gain0 = static_cast<float>(c0);
      k.threshold = static_cast<float>(c1);
      break;
  }
  const auto split = [](int64_t value, uint32_t* halves) {
    halves[0] = static_cast<uint32_t>(static_cast<uint64_t>(value));
    halves[1] = static_cast<uint32_t>(static_cast<uint64_t>(value) >> 32);
  };
  split(seed, k.key);
  split(t, k.time);
  return k;
}

}  // namespace

float* offset(float* base, int64_t by) { return base == nullptr ? nullptr : base + by; }

MaskUpdate::MaskUpdate(Rule rule, const UpdateTensors& tensors, int64_t population, int64_t rows, int64_t cols,
                       bool sample)
    : tensors_(tensors), rows_(rows), cols_(cols), kernel_(kUpdateKernel.get()(rule, sample)) {
  if (rule == Rule::kBop && sample) throw std::invalid_argument("bop keeps no scores to sample bits from");
  const int64_t t = ++*tensors.step;
  constants_.reserve(static_cast<size_t>(population));
  for (int64_t p = 0; p < population; ++p) {
    constants_.push_back(constants_of(rule, tensors.hyper + p * 6, tensors.seed[p], t));
  }
}

int64_t MaskUpdate::apply(int64_t member, int64_t row, int64_t rows, int64_t col, int64_t cols, const float* grad,
                          int64_t grad_stride) const {
  const int64_t word_stride = words_for(cols_);
  const int64_t element = (member * rows_ + row) * cols_ + col;
  const int64_t first_word = row * word_stride + col / kWordBits;
  UpdateBlock block{};
  block.scores = offset(tensors_.scores, element);
  block.grad = grad;
  block.words = tensors_.words + member * rows_ * word_stride + first_word;
  block.buffer0 = tensors_.buffer0 + element;
  block.buffer1 = offset(tensors_.buffer1, element);
  block.rows = rows;
  block.cols = cols;
  block.stride = cols_;
  block.grad_stride = grad_stride;
  block.word_stride = word_stride;
  block.first_word = first_word;
  return kernel_(block, constants_[static_cast<size_t>(member)]);
}

BlockGrid::BlockGrid(int64_t population, int64_t rows_, int64_t cols_, int64_t block_rows_, int64_t block_cols_)
    : rows(rows_), cols(cols_), block_rows(block_rows_), block_cols(block_cols_) {
  across = (cols + block_cols - 1) / block_cols;
  per_member = (rows + block_rows - 1) / block_rows * across;
  tasks = population * per_member;
}

BlockGrid::Block BlockGrid::block(int64_t task) const {
  const int64_t within = task % per_member;
  const int64_t row = within / across * block_rows;
  const int64_t col = within % across * block_cols;
  return {task / per_member, row, std::min(block_rows, rows - row), col, std::min(block_cols, cols - col)};
}

void BlockGrid::sum_by_member(const std::vector<int64_t>& of_task, int64_t* out) const {
  for (int64_t task = 0; task < tasks; ++task) out[task / per_member] += of_task[static_cast<size_t>(task)];
}

void mask_update(Rule rule, const UpdateTensors& tensors, const float* grad, int64_t population, int64_t rows,
                 int64_t cols, bool sample, int threads) {
  // A task of 2^14 edges moves 28 B * 2^14 = 448 KB (Adam), some 40 us at 10 GB/s: enough to pay for handing it out.
  // Anything smaller is one task and so stays on this thread.
  constexpr int64_t kTaskEdges = int64_t{1} << 14;
  const MaskUpdate update(rule, tensors, population, rows, cols, sample);
  const int64_t block_cols = std::min(kTaskEdges, std::max<int64_t>(words_for(cols), 1) * kWordBits);
  const BlockGrid grid(population, rows, cols, kTaskEdges / block_cols, block_cols);
  std::vector<int64_t> flips(static_cast<size_t>(grid.tasks));
  parallel_for(threads, grid.tasks, [&](int64_t task) {
    const BlockGrid::Block b = grid.block(task);
    const float* block_grad = grad + (b.member * rows + b.row) * cols + b.col;
    flips[static_cast<size_t>(task)] = update.apply(b.member, b.row, b.rows, b.col, b.cols, block_grad, cols);
  });
  std::fill_n(tensors.flips, population, int64_t{0});
  grid.sum_by_member(flips, tensors.flips);
}

}  // namespace fastbin
