// bit_linear for a few samples where no permute of eight lanes is at hand, a block's lanes would mostly be empty and a
// repack of the matrix would cost as much as the product. Tables of 8 inputs (256 subset sums) are indexed by the bytes
// of the words as they lie in memory. With one sample that is a scalar add for 8 products: two adds a cycle are 16
// products a cycle, four words (16 tables, 16 KiB) at a time. With four samples it is a 16-byte add for 32 products, a
// word (4 tables, 16 KiB) at a time.
#pragma once

#include "cpu/bit_linear_isa.h"
#include "cpu/transpose_kernel.h"

namespace fastbin {
namespace FASTBIN_ISA_NAMESPACE {

constexpr int64_t kSmallBatch = 4;  // what one table serves

// L samples; K inputs to a table, 8 or (for few outputs, where building the tables would dominate) 4.
template <typename A, int L, int K>
struct SmallKernel {
  static constexpr int kWords = 4 / L;
  static constexpr int kInputs = 32 * kWords;
  static constexpr int kEntries = 1 << K;
  static constexpr int kTables = kInputs / K;
  using V = Lanes<A, L>;

  // Sums of 8 inputs are sums of the low 4 plus sums of the high 4.
  static void build(const A* x, A* table) {
    A half[2][16 * L];
    for (int h = 0; h < K / 4; ++h) {
      A* sums = K == 8 ? half[h] : table;
      for (int i = 0; i < L; ++i) sums[i] = 0;
      for (int k = 0; k < 4; ++k) {
        for (int i = 0; i < L << k; ++i) sums[(L << k) + i] = sums[i] + x[(4 * h + k) * L + i % L];
      }
    }
    if (K == 8) {
      for (int high = 0; high < 16; ++high) {
        for (int i = 0; i < 16 * L; ++i) table[high * 16 * L + i] = half[1][high * L + i % L] + half[0][i];
      }
    }
  }

  template <typename W>
  static FASTBIN_INLINE V look_up(const A* tables, W word, int t) {
    return V::load(tables +
                   (t * kEntries + static_cast<int64_t>(word >> (t * K % (8 * sizeof(W))) & (kEntries - 1))) * L);
  }

  template <bool kFirst>
  static void accumulate(const A* tables, const uint32_t* words, int64_t stride, int64_t outputs, A* acc) {
    using W = uint64_t;
    for (int64_t r = 0; r < outputs; ++r) {
      __builtin_prefetch(words + (r + 24) * stride);
      V sums[4];
      for (int i = 0; i < 4; ++i) sums[i] = V::zero();
      if (kWords == 4) {
        for (int half = 0; half < 2; ++half) {
          W word;
          std::memcpy(&word, words + r * stride + 2 * half, sizeof(word));
          for (int t = 0; t < kTables / 2; ++t) {
            const V entry = look_up(tables + half * (kTables / 2) * kEntries * L, word, t);
            sums[t % 4] = half == 0 && t < 4 ? entry : sums[t % 4] + entry;
          }
        }
      } else {
        const uint32_t word = words[r * stride];
        for (int t = 0; t < kTables; ++t) {
          const V entry = look_up(tables, word, t);
          sums[t % 4] = t < 4 ? entry : sums[t % 4] + entry;
        }
      }
      V sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
      if (!kFirst) sum = sum + V::load(acc + r * L);
      sum.store(acc + r * L);
    }
  }

  // x [samples][inputs] from `first` on as [kInputs][L], zeros past the end.
  template <typename X>
  static void load(const X* x, int64_t samples, int64_t inputs, int64_t first, A* out) {
    const int64_t count = inputs - first < kInputs ? inputs - first : kInputs;
    for (int i = 0; i < kInputs * L; ++i) out[i] = 0;
    for (int64_t s = 0; s < samples; ++s) {
      for (int64_t i = 0; i < count; ++i) out[i * L + s] = static_cast<A>(x[s * inputs + first + i]);
    }
  }

  // Words `fetch` gives: a pointer to kWords words for each output, `stride` apart, for inputs from `first` on.
  template <typename X, typename Fetch>
  static void run(const X* x, int64_t samples, int64_t inputs, int64_t outputs, A* y, int64_t y_stride, A* scratch,
                  const Fetch& fetch) {
    A* tables = scratch;
    A* values = tables + kTables * kEntries * L;
    A* acc = scratch + kTableBytes / sizeof(A);
    if (inputs == 0) std::memset(acc, 0, static_cast<size_t>(outputs) * L * sizeof(A));
    for (int64_t first = 0; first < inputs; first += kInputs) {
      load(x, samples, inputs, first, values);
      for (int t = 0; t < kTables; ++t) build(values + t * K * L, tables + t * kEntries * L);
      int64_t stride;
      const uint32_t* words = fetch(first, kWords, &stride);
      if (first == 0) {
        accumulate<true>(tables, words, stride, outputs, acc);
      } else {
        accumulate<false>(tables, words, stride, outputs, acc);
      }
    }
    store_transposed<L>(reinterpret_cast<const uint32_t*>(acc), outputs, samples, reinterpret_cast<uint32_t*>(y),
                        y_stride);
  }
};

constexpr int64_t kTileWords = 4;

// The words of outputs first + [0, count) where they lie; the last few of each row, if not kWords, copied to a tile.
struct FetchRows {
  const uint32_t* w;
  int64_t row_words, count;
  uint32_t* tile;

  const uint32_t* operator()(int64_t input, int64_t words, int64_t* stride) const {
    const uint32_t* start = w + input / 32;
    const int64_t left = row_words - input / 32;
    *stride = row_words;
    if (left >= words) return start;
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t i = 0; i < words; ++i) tile[r * words + i] = i < left ? start[r * row_words + i] : 0;
    }
    *stride = words;
    return tile;
  }
};

// The same for the transposed product: blocks of 32 rows are transposed into the tile.
struct FetchColumns {
  const uint32_t* w;  // at the word of the first output
  int64_t row_words, rows, count;
  uint32_t* tile;

  const uint32_t* operator()(int64_t input, int64_t words, int64_t* stride) const {
    for (int64_t i = 0; i < words; ++i) {
      const int64_t r0 = input + 32 * i;
      const int64_t block_rows = rows - r0 < 32 ? (rows > r0 ? rows - r0 : 0) : 32;
      for (int64_t c = 0; c < count; c += 32 * kBitBlockWords) {
        const int64_t left = (count - c + 31) / 32;
        transpose_bit_block(w + r0 * row_words + c / 32, row_words, block_rows,
                            left < kBitBlockWords ? left : kBitBlockWords, tile + c * words + i, words);
      }
    }
    *stride = words;
    return tile;
  }
};

template <typename X, typename A, typename Fetch>
static void small(const X* x, int64_t samples, int64_t inputs, int64_t outputs, A* y, int64_t y_stride, A* scratch,
                  const Fetch& fetch) {
  if (samples == 1) {
    if (outputs >= 64) {
      SmallKernel<A, 1, 8>::run(x, samples, inputs, outputs, y, y_stride, scratch, fetch);
    } else {
      SmallKernel<A, 1, 4>::run(x, samples, inputs, outputs, y, y_stride, scratch, fetch);
    }
    return;
  }
  for (int64_t s = 0; s < samples; s += 4) {
    const int64_t count = samples - s < 4 ? samples - s : 4;
    if (outputs >= 450) {
      SmallKernel<A, 4, 8>::run(x + s * inputs, count, inputs, outputs, y + s * y_stride, y_stride, scratch, fetch);
    } else {
      SmallKernel<A, 4, 4>::run(x + s * inputs, count, inputs, outputs, y + s * y_stride, y_stride, scratch, fetch);
    }
  }
}

template <typename A>
static uint32_t* tile_of(A* scratch, int64_t count) {
  return reinterpret_cast<uint32_t*>(scratch + kTableBytes / sizeof(A) + count * 4);
}

template <typename X, typename A>
static void small_rows(const X* x, const uint32_t* w, A* y, int64_t samples, int64_t rows, int64_t cols, int64_t first,
                       int64_t count, void* scratch) {
  const int64_t row_words = (cols + 31) / 32;
  A* memory = static_cast<A*>(scratch);
  small(x, samples, cols, count, y + first, rows, memory,
        FetchRows{w + first * row_words, row_words, count, tile_of(memory, count)});
}

template <typename X, typename A>
static void small_columns(const X* x, const uint32_t* w, A* y, int64_t samples, int64_t rows, int64_t cols,
                          int64_t first, int64_t count, void* scratch) {
  A* memory = static_cast<A*>(scratch);
  small(x, samples, rows, count, y + first, cols, memory,
        FetchColumns{w + first / 32, (cols + 31) / 32, rows, count, tile_of(memory, count)});
}

template <typename X, typename A>
static void small_product(const X* x, const uint32_t* w, A* y, int64_t samples, int64_t rows, int64_t cols,
                          int64_t first, int64_t count, bool transposed, void* scratch) {
  if (transposed) {
    small_columns(x, w, y, samples, rows, cols, first, count, scratch);
  } else {
    small_rows(x, w, y, samples, rows, cols, first, count, scratch);
  }
}

}  // namespace FASTBIN_ISA_NAMESPACE
}  // namespace fastbin

#include "cpu/bit_linear_small_entry.h"
