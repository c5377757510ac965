// The fused updates on the GPU: what they take.
#pragma once

#include "cuda/bit_linear.h"  // Scalar

namespace fastbin::cuda {

enum class Rule { kSgd, kAdam, kBop };

// What a member's step needs of its hyper-parameters and of the step's count, in float32.
struct UpdateConstants {
  float inv_tau, clip, rate, c0, rest0, c1, rest1, c2, inv_sqrt_bias;
};

// An update in place. scores (null for kBop), first and second (null but for kAdam) [population, rows, cols], words
// [population, rows, ceil(cols / 32)], seed [population]; hyper [population, kHyperFields], as in fastbin/reference.py;
// step one number, counted up. constants [population] is workspace, flips [population] the number of bits that changed.
// All sizes are at least 1.
struct MaskUpdate {
  float* scores;
  uint32_t* words;
  float* first;
  float* second;
  const double* hyper;
  const int64_t* seed;
  int64_t* step;
  UpdateConstants* constants;
  int64_t* flips;
  int64_t population, rows, cols;
  Rule rule;
  bool sample;

  __host__ __device__ int64_t row_words() const { return (cols + 31) / 32; }
};

constexpr int kHyperFields = 6;

// The gradient gyᵀ x of an update: gy [population, batch, rows] in float32, bfloat16 or float16; x [population, batch,
// cols] of the same type, or packed bits [population, batch, ceil(cols / 32)]. batch may be 0.
struct Gradient {
  const void* gy;
  const void* x;
  int64_t batch;
  Scalar type;
  bool bits;
};

// Counts the step, and updates by the gradient, whose sums over the batch are never stored.
// Compute capability 8.0 and later. Throws std::runtime_error for another device, or for a CUDA error.
void mask_grad_update(const MaskUpdate& update, const Gradient& gradient, const Queue& queue);

// The same without counting the step, for mask_grad_update: by mma.sync, any such device, and by wgmma, 9.0 only.
void mask_grad_update_mma(const MaskUpdate& update, const Gradient& gradient, const Queue& queue);
void mask_grad_update_wgmma(const MaskUpdate& update, const Gradient& gradient, const Queue& queue);

}  // namespace fastbin::cuda
