// The fused update of masks: surrogate derivative, score rule, clip, threshold or sample, pack, in one pass.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/update_block.h"

namespace fastbin {

// The state that an update reads and writes, for every member of a population.
struct UpdateTensors {
  float* scores;    // [P, R, C]; null for bop
  uint32_t* words;  // [P, R, words_for(C)]: old bits in, new bits out
  float* buffer0;   // [P, R, C]: momentum (sgd), first moment (adam), running mean (bop)
  float* buffer1;   // [P, R, C]: second moment (adam), else null
  const double*
      hyper;  // [P, 6]: lr, tau, clip, then momentum (sgd), beta1, beta2, epsilon (adam), gamma, threshold (bop)
  const int64_t* seed;  // [P]
  int64_t* step;        // [1]
  int64_t* flips;       // [P]: out, the number of bits that changed
};

// A pointer further on, or null as it was: not every rule has scores or a second buffer.
float* offset(float* base, int64_t by);

// One call of an update: counts the step on, and then updates any block of any member, from any thread.
class MaskUpdate {
 public:
  MaskUpdate(Rule rule, const UpdateTensors& tensors, int64_t population, int64_t rows, int64_t cols, bool sample);

  // Updates rows [row, row + rows) and columns [col, col + cols) of a member, from a gradient whose first element is
  // that of the block. col is a multiple of 32, and so is cols unless the block ends with the row. Returns the flips.
  int64_t apply(int64_t member, int64_t row, int64_t rows, int64_t col, int64_t cols, const float* grad,
                int64_t grad_stride) const;

 private:
  UpdateTensors tensors_;
  int64_t rows_;
  int64_t cols_;
  UpdateKernel kernel_;
  std::vector<UpdateConstants> constants_;
};

// A member's matrix cut into blocks of whole words: task i of all members in order.
struct BlockGrid {
  BlockGrid(int64_t population, int64_t rows, int64_t cols, int64_t block_rows, int64_t block_cols);

  struct Block {
    int64_t member, row, rows, col, cols;
  };
  Block block(int64_t task) const;

  // Adds each task's number to its member's.
  void sum_by_member(const std::vector<int64_t>& of_task, int64_t* out) const;

  int64_t rows, cols, block_rows, block_cols, across, per_member, tasks;
};

// With the gradient given: grad [P, R, C].
void mask_update(Rule rule, const UpdateTensors& tensors, const float* grad, int64_t population, int64_t rows,
                 int64_t cols, bool sample, int threads);

}  // namespace fastbin
