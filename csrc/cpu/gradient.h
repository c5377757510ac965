// The fused updates of masks from a layer's output gradient and input: grad = gyᵀ x is produced a tile at a time and
// consumed while it is in the cache, never stored.
#pragma once

#include <cstdint>

#include "cpu/mask_update.h"

namespace fastbin {

// gy [P, B, R], x [P, B, C]. With `bf16`, and where isa_has_bf16(), both are rounded to bfloat16, their products still
// added in float32.
void mask_grad_update_f32(Rule rule, const UpdateTensors& tensors, const float* gy, const float* x, int64_t population,
                          int64_t batch, int64_t rows, int64_t cols, bool sample, bool bf16, int threads);

// gy [P, B, R], x_words [P, B, words_for(C)].
void mask_grad_update_bits(Rule rule, const UpdateTensors& tensors, const float* gy, const uint32_t* x_words,
                           int64_t population, int64_t batch, int64_t rows, int64_t cols, bool sample, int threads);

}  // namespace fastbin
