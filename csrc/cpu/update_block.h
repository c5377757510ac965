// What the drivers of the updates hand to the kernels: plain data, for the per-instruction-set files include this too.
#pragma once

#include <cstdint>

namespace fastbin {

enum class Rule : int { kSgd = 0, kAdam = 1, kBop = 2 };

// One member's constants, computed in double and rounded once.
struct UpdateConstants {
  float inv_tau;
  float step;    // sgd: lr; adam: lr / (1 - beta1^t)
  float clip;    // scores stay in [-clip, clip]
  float decay0;  // buffer0 <- decay0 * buffer0 + gain0 * g; sgd has no gain
  float gain0;
  float decay1;  // adam: buffer1 <- decay1 * buffer1 + gain1 * g^2
  float gain1;
  float inv_sqrt_bias;  // adam: 1 / sqrt(1 - beta2^t)
  float epsilon;        // adam
  float threshold;      // bop
  uint32_t key[2];      // Philox: the member's seed
  uint32_t time[2];     // Philox: the step, in the counter's upper half
};

// A block of rows and of whole words of one member. Each pointer is at the block's first element.
struct UpdateBlock {
  float* scores;  // null for bop
  const float* grad;
  uint32_t* words;
  float* buffer0;
  float* buffer1;  // null but for adam
  int64_t rows;
  int64_t cols;         // of this block; a block that is not the row's last has a multiple of 32
  int64_t stride;       // elements from row to row of scores and buffers
  int64_t grad_stride;  // elements from row to row of grad
  int64_t word_stride;  // words from row to row of words
  int64_t first_word;   // index of the block's first word within the member, for Philox
};

// Updates a block in place and returns the number of bits that changed.
using UpdateKernel = int64_t (*)(const UpdateBlock&, const UpdateConstants&);

}  // namespace fastbin
