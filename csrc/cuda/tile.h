// What the tiled kernels of bit_matmul share: the order of tiles and the output's two forms.
#pragma once

#include "cuda/bit_matmul.h"
#include "cuda/ptx.h"

namespace fastbin::cuda {

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Tile {
  int64_t member, row, column;  // of the output; row and column in tiles
};

// Tiles in bands of `band` rows of tiles, column after column within a band: the blocks that run at a time then share
// rows of a and b in L2. There are no more tiles than an int can count, and 32-bit divisions take a fraction of the
// time of 64-bit ones, which a tile would wait for.
__device__ inline Tile tile_at(int64_t index, int64_t tile_rows, int64_t tile_columns, int band) {
  const int rows = static_cast<int>(tile_rows), columns = static_cast<int>(tile_columns);
  const int member = static_cast<int>(index) / (rows * columns);
  const int within = static_cast<int>(index) - member * (rows * columns);
  const int first = within / (band * columns) * band;
  const int height = rows - first < band ? rows - first : band;
  const int step = within - first * columns;
  return {member, first + step % height, step / height};
}

// What a lane keeps of the thresholds of a fragment of kTiles tiles of 8 columns (see store_fragment): two of its rows'
// if all columns share them, one column's in 32 if all rows do. Others are read one by one when they are needed.
template <int kTiles>
struct Thresholds {
  int32_t row[2];              // those of `row` and `row` + 8
  int32_t column[kTiles / 4];  // those of `column` + 32 w + lane
};

template <int kTiles>
__device__ __forceinline__ Thresholds<kTiles> load_thresholds(const BitMatmul& p, int64_t member, int64_t row,
                                                              int64_t column) {
  Thresholds<kTiles> found{};
  if (p.thresholds == nullptr) return found;
  const int32_t* thresholds = p.thresholds + member * p.member_stride;
  if (p.column_stride == 0) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t r = row + 8 * half;
      if (r < p.rows_a) found.row[half] = thresholds[r * p.row_stride];
    }
  } else if (p.row_stride == 0) {
#pragma unroll
    for (int w = 0; w < kTiles / 4; ++w) {
      const int64_t c = column + 32 * w + threadIdx.x % 32;
      if (c < p.rows_b) found.column[w] = thresholds[c * p.column_stride];
    }
  }
  return found;
}

// count > threshold for two rows of a fragment, as packed words; threshold(w, bit) are those of column 32 w + bit + 2 q
// in both rows.
template <int kTiles, typename Threshold>
__device__ __forceinline__ void store_bits(const BitMatmul& p, int64_t member, int64_t row, int64_t column,
                                           const int32_t (&counts)[kTiles][4], const Threshold& threshold) {
  const int q = static_cast<int>(threadIdx.x % 4);
  const int64_t row_words = ceil_div(p.rows_b, 32);
  uint32_t mine[2] = {0, 0};  // lane q of a quad stores words q, q + 4, ...
#pragma unroll
  for (int w = 0; w < kTiles / 4; ++w) {
    const int64_t left = p.rows_b - column - 32 * w;  // columns, of which the last word may have fewer than 32
    if (left > 0) {
      uint32_t words[2] = {0, 0};
#pragma unroll
      for (int t = 0; t < 4; ++t) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int2 least = threshold(w, 8 * t + i);
          if (counts[4 * w + t][i] > least.x) words[0] |= 1u << (8 * t + i);
          if (counts[4 * w + t][2 + i] > least.y) words[1] |= 1u << (8 * t + i);
        }
      }
      const uint32_t inside = left < 32 ? (1u << static_cast<unsigned>(left)) - 1 : 0xffffffffu;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t word = words[half] << 2 * q;
        word |= __shfl_xor_sync(0xffffffffu, word, 1);
        word |= __shfl_xor_sync(0xffffffffu, word, 2);
        if (q == w % 4) mine[half] = word & inside;
      }
    }
    if (w % 4 == 3 || w == kTiles / 4 - 1) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t r = row + 8 * half, at = column / 32 + w / 4 * 4 + q;
        if (q <= w % 4 && r < p.rows_a && at < row_words) {
          p.y[(member * p.rows_a + r) * row_words + at] = static_cast<int32_t>(mine[half]);
        }
      }
    }
  }
}

// The counts of two rows of a fragment. If each row of y starts on 16 bytes, 16 bytes at a time: lanes 2 i and 2 i + 1
// trade halves of a pair of tiles, so that each has four neighbouring columns of one of them. They leave the caches
// first (__stcs), as nobody reads them soon.
template <int kTiles>
__device__ __forceinline__ void store_counts(const BitMatmul& p, int64_t member, int64_t row, int64_t column,
                                             const int32_t (&counts)[kTiles][4]) {
  const int q = static_cast<int>(threadIdx.x % 4), odd = q % 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t r = row + 8 * half;
    int32_t* out = p.y + (member * p.rows_a + r) * p.rows_b;
    if (p.rows_b % 4 == 0) {
#pragma unroll
      for (int t = 0; t < kTiles; t += 2) {
        const int32_t* left = counts[t] + 2 * half;
        const int32_t* right = counts[t + 1] + 2 * half;
        const int32_t other0 = __shfl_xor_sync(0xffffffffu, odd ? left[0] : right[0], 1);
        const int32_t other1 = __shfl_xor_sync(0xffffffffu, odd ? left[1] : right[1], 1);
        const int64_t c = column + 8 * (t + odd) + 2 * (q - odd);
        if (r < p.rows_a && c < p.rows_b) {
          __stcs(reinterpret_cast<int4*>(out + c),
                 odd ? make_int4(other0, other1, right[0], right[1]) : make_int4(left[0], left[1], other0, other1));
        }
      }
    } else if (r < p.rows_a) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const int64_t c = column + 8 * t + 2 * q;
        if (p.rows_b % 2 == 0 && c < p.rows_b) {  // each row of y starts on 8 bytes
          __stcs(reinterpret_cast<int2*>(out + c), make_int2(counts[t][2 * half], counts[t][2 * half + 1]));
        } else {
          if (c < p.rows_b) out[c] = counts[t][2 * half];
          if (c + 1 < p.rows_b) out[c + 1] = counts[t][2 * half + 1];
        }
      }
    }
  }
}

// Writes rows `row` and `row` + 8 of a fragment of kTiles tiles of 8 columns from `column`, as and_popcount_mma (and
// wgmma, whose layout is the same) leaves it: counts[t][0..1] in columns 8 t + 2 q, 8 t + 2 q + 1 of the first row,
// [2..3] of the second, q the lane's place in its quad. `column` is a multiple of 32 and kTiles of 4; `thresholds` is
// what load_thresholds found for them. All lanes of a warp call it, those of a quad with the same `row`.
template <int kTiles>
__device__ __forceinline__ void store_fragment(const BitMatmul& p, int64_t member, int64_t row, int64_t column,
                                               const int32_t (&counts)[kTiles][4],
                                               const Thresholds<kTiles>& thresholds) {
  const int q = static_cast<int>(threadIdx.x % 4);
  if (p.thresholds == nullptr) {
    store_counts(p, member, row, column, counts);
  } else if (p.column_stride == 0) {
    store_bits(p, member, row, column, counts,
               [&](int, int) { return make_int2(thresholds.row[0], thresholds.row[1]); });
  } else if (p.row_stride == 0) {
    store_bits(p, member, row, column, counts, [&](int w, int bit) {
      const int32_t both = __shfl_sync(0xffffffffu, thresholds.column[w], bit + 2 * q);
      return make_int2(both, both);
    });
  } else {
    const int32_t* first = p.thresholds + member * p.member_stride + row * p.row_stride;
    const int32_t* second = first + 8 * p.row_stride;
    store_bits(p, member, row, column, counts, [&](int w, int bit) {
      const int64_t c = column + 32 * w + bit + 2 * q, at = c * p.column_stride;
      const bool inside = c < p.rows_b;
      return make_int2(inside && row < p.rows_a ? first[at] : 0, inside && row + 8 < p.rows_a ? second[at] : 0);
    });
  }
}

}  // namespace fastbin::cuda
