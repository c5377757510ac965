// Products of real samples with a {0,1} matrix packed as in cpu/bits.h, for a population of independent members.
//
// Only the inputs whose bit is 1 are summed, on every path: a NaN or an infinity in x reaches exactly the outputs that
// select it, where a dense product would make NaN of 0 * Inf. Sizes may be 0; an empty sum is 0.
#pragma once

#include <cstdint>

namespace fastbin {

// y[p][b][r] = sum over c of x[p][b][c] * w[p][r][c], with x [P, B, C], w [P, R, words_for(C)] and y [P, B, R].
void bit_linear_f32(const float* x, const uint32_t* w, float* y, int64_t population, int64_t batch, int64_t rows,
                    int64_t cols, int threads);
// The same, exact modulo 2^32 (that is, exact for C < 2^24).
void bit_linear_i8(const int8_t* x, const uint32_t* w, int32_t* y, int64_t population, int64_t batch, int64_t rows,
                   int64_t cols, int threads);

// y[p][b][c] = sum over r of g[p][b][r] * w[p][r][c], with g [P, B, R] and y [P, B, C].
void bit_linear_t_f32(const float* g, const uint32_t* w, float* y, int64_t population, int64_t batch, int64_t rows,
                      int64_t cols, int threads);
void bit_linear_t_i8(const int8_t* g, const uint32_t* w, int32_t* y, int64_t population, int64_t batch, int64_t rows,
                     int64_t cols, int threads);

}  // namespace fastbin
