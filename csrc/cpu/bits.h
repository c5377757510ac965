// Moving bits about: pack, unpack, transpose, count. The layout is that of fastbin.BitMatrix: element (r, c) of a
// rows x cols matrix is bit c % 32 (least significant first) of word [r, c / 32]; bits past cols are 0.
#pragma once

#include <cstdint>

namespace fastbin {

constexpr int kWordBits = 32;

constexpr int64_t words_for(int64_t cols) { return (cols + kWordBits - 1) / kWordBits; }

// Bit (r, c) = x[r][c] > threshold. Returns the flat index of the first NaN, or -1.
int64_t pack_threshold_f32(const float* x, float threshold, uint32_t* words, int64_t rows, int64_t cols, int threads);

// Bit (r, c) = x[r][c], whose values are all 0 or 1. Returns the flat index of the first other value (NaN included),
// or -1; the words are unspecified where it is not -1.
int64_t pack_f32(const float* x, uint32_t* words, int64_t rows, int64_t cols, int threads);
int64_t pack_u8(const uint8_t* x, uint32_t* words, int64_t rows, int64_t cols, int threads);

void unpack_f32(const uint32_t* words, float* y, int64_t rows, int64_t cols, int threads);
void unpack_u8(const uint32_t* words, uint8_t* y, int64_t rows, int64_t cols, int threads);

// out[p] = the transpose of w[p]: [population, cols, words_for(rows)] from [population, rows, words_for(cols)].
void transpose_bits(const uint32_t* w, int64_t population, int64_t rows, int64_t cols, uint32_t* out, int threads);

int64_t popcount(const uint32_t* words, int64_t n, int threads);

}  // namespace fastbin
