// What the tiled kernels of bit_matmul share: the order of tiles and the output's two forms.
#pragma once

#include "cuda/bit_matmul.h"
#include "cuda/ptx.h"

namespace fastbin::cuda {

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Tile {
  int64_t member, row, column;  // of the output; row and column in tiles
};

// Tiles in bands of eight rows of tiles, column after column within a band: the blocks that run at a time then share
// rows of a and b in L2.
__device__ inline Tile tile_at(int64_t index, int64_t tile_rows, int64_t tile_columns) {
  constexpr int64_t kBand = 8;
  const int64_t member = index / (tile_rows * tile_columns);
  const int64_t within = index - member * tile_rows * tile_columns;
  const int64_t first = within / (kBand * tile_columns) * kBand;
  const int64_t left = tile_rows - first;
  const int64_t height = left < kBand ? left : kBand;
  const int64_t step = within - first * tile_columns;
  return {member, first + step % height, step / height};
}

// count > threshold, for an element inside the output; false outside of it.
__device__ __forceinline__ bool passes(const BitMatmul& p, int64_t member, int64_t row, int64_t column, int32_t count) {
  if (row >= p.rows_a || column >= p.rows_b) return false;
  return count > p.thresholds[member * p.member_stride + row * p.row_stride + column * p.column_stride];
}

// Writes rows `row` and `row` + 8 of a fragment of kTiles tiles of 8 columns from `column`, as and_popcount_mma (and
// wgmma, whose layout is the same) leaves it: counts[t][0..1] in columns 8 t + 2 q, 8 t + 2 q + 1 of the first row,
// [2..3] of the second, q the lane's place in its quad. `column` is a multiple of 32 and kTiles of 4. All lanes of a
// quad call it with the same `row`.
template <int kTiles>
__device__ __forceinline__ void store_fragment(const BitMatmul& p, int64_t member, int64_t row, int64_t column,
                                               const int32_t (&counts)[kTiles][4]) {
  const int q = static_cast<int>(threadIdx.x % 4);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t r = row + 8 * half;
    if (p.thresholds == nullptr) {
      if (r >= p.rows_a) continue;
      int32_t* out = p.y + (member * p.rows_a + r) * p.rows_b;
      const bool pairs = p.rows_b % 2 == 0;  // each row of y then starts on 8 bytes
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const int64_t c = column + 8 * t + 2 * q;
        if (pairs && c < p.rows_b) {
          *reinterpret_cast<int2*>(out + c) = make_int2(counts[t][2 * half], counts[t][2 * half + 1]);
        } else {
          if (c < p.rows_b) out[c] = counts[t][2 * half];
          if (c + 1 < p.rows_b) out[c + 1] = counts[t][2 * half + 1];
        }
      }
      continue;
    }
    const int64_t row_words = ceil_div(p.rows_b, 32);
#pragma unroll
    for (int w = 0; w < kTiles / 4; ++w) {
      uint32_t word = 0;
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        const int bit = 8 * t + 2 * q;
        const int64_t c = column + 32 * w + bit;
        const int32_t* pair = counts[4 * w + t] + 2 * half;
        word |= static_cast<uint32_t>(passes(p, member, r, c, pair[0])) << bit;
        word |= static_cast<uint32_t>(passes(p, member, r, c + 1, pair[1])) << (bit + 1);
      }
      word |= __shfl_xor_sync(0xffffffffu, word, 1);
      word |= __shfl_xor_sync(0xffffffffu, word, 2);
      const int64_t at = column / 32 + w;
      if (q == 0 && r < p.rows_a && at < row_words) {
        p.y[(member * p.rows_a + r) * row_words + at] = static_cast<int32_t>(word);
      }
    }
  }
}

}  // namespace fastbin::cuda
