// bit_linear for one or two samples with tables in registers. The same word of N outputs, one to a lane, indexes a
// table of all N = 2^K subset sums of K inputs by a permute: a shift, a permute and an add for N K products (24 on
// AVX2, 64 on AVX-512). Four vectors of outputs share each load of a table. (A permute with a table in memory takes Zen
// 3 two cycles instead of one.) N x N blocks of words are transposed in registers to get there.
//
// The including file defines, in this namespace: Words, kLanes (N), kBits (K), load_words, store_words,
// load_transposed, shift_right, and load_table, permute(table, index), add and keep_order for float and int32 vectors.
// keep_order holds the work to one table after another: the compiler would fold the loads into the permutes, or do all
// the permutes first and spill them.
#pragma once

#include "cpu/bit_linear_isa.h"
#include "cpu/transpose_kernel.h"

namespace fastbin {
namespace FASTBIN_ISA_NAMESPACE {

constexpr int kWordTables = (32 + kBits - 1) / kBits;  // tables to a word; the last may be of fewer inputs
constexpr int kGroups = 4;                             // vectors of outputs at a time
constexpr int64_t kTileOutputs = kGroups * kLanes;
constexpr int64_t kBlockWords = 16;  // of a row at a time: a cache line, in which a sum may run before it joins others
static_assert(kBlockWords % kLanes == 0, "whole vectors");

template <typename X, typename A, int S>
struct RegisterKernel {
  using Sum = decltype(load_table(static_cast<const A*>(nullptr)));
  static constexpr int kTableValues = kWordTables * S * kLanes;  // tables of one word
  static constexpr int64_t kChunkWords =
      kTableBytes / (kTableValues * static_cast<int64_t>(sizeof(A))) / kBlockWords * kBlockWords;
  static_assert(kChunkWords > 0, "room for a block");

  // The tables of words [0, words) of a chunk: entry e of a table is the sum of the inputs at the set bits of e.
  static void build(const X* x, int64_t inputs, int64_t samples, int64_t first, int64_t words, A* tables) {
    using Values = typename VectorOf<A, kLanes * 4>::type;
    using Mask = VectorOf<int32_t, kLanes * 4>::type;
    Mask entries;
    for (int e = 0; e < kLanes; ++e) entries[e] = e;
    for (int s = 0; s < S; ++s) {
      for (int64_t word = 0; word < words; ++word) {
        A values[32 + kBits] = {};
        const int64_t left = s < samples ? inputs - (first + 32 * word) : 0;
        const X* from = x + s * inputs + first + 32 * word;
        if (left >= 32) {
          for (int i = 0; i < 32; ++i) values[i] = static_cast<A>(from[i]);
        } else {
          for (int64_t i = 0; i < left; ++i) values[i] = static_cast<A>(from[i]);
        }
        for (int t = 0; t < kWordTables; ++t) {
          Values sum = {};
          for (int k = 0; k < kBits; ++k) {
            const Values value = Values{} + values[t * kBits + k];
            sum += reinterpret_cast<Values>(reinterpret_cast<Mask>(value) & ((entries >> k & 1) != 0));
          }
          std::memcpy(tables + word * kTableValues + (t * S + s) * kLanes, &sum, sizeof(sum));
        }
      }
    }
  }

  // Adds the products of one word of kTileOutputs outputs.
  static FASTBIN_INLINE void add_word(const uint32_t* words, const A* tables, Sum (&sums)[S][kGroups]) {
    Words word[kGroups];
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) word[g] = load_words(words + g * kLanes);
#pragma GCC unroll 16
    for (int t = 0; t < kWordTables; ++t) {
      Sum table[S];
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) {
        table[s] = load_table(tables + (t * S + s) * kLanes);
        keep_order(table[s]);
      }
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) {
        const Words index = shift_right(word[g], t * kBits);
#pragma GCC unroll 4
        for (int s = 0; s < S; ++s) {
          sums[s][g] = add(sums[s][g], permute(table[s], index));
          keep_order(sums[s][g]);
        }
      }
    }
  }

  // Adds the products of some words, kTileOutputs of each, to the accumulators [S][count] of outputs from r on.
  static FASTBIN_INLINE void add_words(const uint32_t* staged, int64_t stride, int64_t words, const A* tables,
                                       int64_t r, int64_t count, A* acc) {
    Sum sums[S][kGroups];
    for (int s = 0; s < S; ++s) {
      for (int g = 0; g < kGroups; ++g) sums[s][g] = Sum{};
    }
    for (int64_t i = 0; i < words; ++i) add_word(staged + i * stride, tables + i * kTableValues, sums);
    const int64_t left = count - r < kTileOutputs ? count - r : kTileOutputs;
    for (int s = 0; s < S; ++s) {
      A values[kTileOutputs];
      std::memcpy(values, sums[s], sizeof(values));
      A* out = acc + s * count + r;
      for (int64_t i = 0; i < left; ++i) out[i] += values[i];
    }
  }

  // The words of a tile, [outputs][words] from `from` on, as [kBlockWords][kTileOutputs]; 0 where there are none.
  static FASTBIN_INLINE void stage(const uint32_t* from, int64_t row_words, int64_t outputs, int64_t words,
                                   uint32_t* staged) {
    uint32_t padded[kTileOutputs * kBlockWords];
    if (outputs < kTileOutputs || words < kBlockWords) {
      for (int64_t i = 0; i < kTileOutputs; ++i) {
        for (int64_t j = 0; j < kBlockWords; ++j) {
          padded[i * kBlockWords + j] = i < outputs && j < words ? from[i * row_words + j] : 0;
        }
      }
      from = padded;
      row_words = kBlockWords;
    }
    for (int64_t g = 0; g < kGroups; ++g) {
      for (int64_t j = 0; j < kBlockWords; j += kLanes) {
        Words block[kLanes];
        load_transposed(from + g * kLanes * row_words + j, row_words, block);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) store_words(staged + (j + i) * kTileOutputs + g * kLanes, block[i]);
      }
    }
  }

  // w at the chunk's first word of the first output.
  static void add_rows(const uint32_t* w, int64_t row_words, int64_t words, const A* tables, int64_t count, A* acc) {
    alignas(64) uint32_t staged[kBlockWords * kTileOutputs];
    for (int64_t r = 0; r < count; r += kTileOutputs) {
      const int64_t outputs = count - r < kTileOutputs ? count - r : kTileOutputs;
      for (int64_t word = 0; word < words; word += kBlockWords) {
        const uint32_t* from = w + r * row_words + word;
        // The tile's rows are as many streams as no hardware prefetcher follows: a few lines ahead of each, into L2,
        // and at their ends the beginnings of the next tile's.
        constexpr int64_t kAhead = 4 * kBlockWords;
        const uint32_t* coming = from + kAhead;
        if (word + kAhead >= words) coming += kTileOutputs * row_words - words;
        for (int64_t i = 0; i < kTileOutputs; ++i) __builtin_prefetch(coming + i * row_words, 0, 2);
        stage(from, row_words, outputs, words - word, staged);
        add_words(staged, kTileOutputs, kBlockWords, tables + word * kTableValues, r, count, acc);
      }
    }
  }

  // The transposed product: blocks of 32 rows x 512 columns of bits are transposed to words of inputs.
  static void add_columns(const uint32_t* w, int64_t row_words, int64_t rows, int64_t words, const A* tables,
                          int64_t count, A* acc) {
    constexpr int64_t kTile = 32 * kBitBlockWords;
    alignas(64) uint32_t staged[4][kTile];
    for (int64_t c = 0; c < count; c += kTile) {
      const int64_t columns = count - c < kTile ? count - c : kTile;
      for (int64_t word = 0; word < words; word += 4) {
        const int64_t together = words - word < 4 ? words - word : 4;
        for (int64_t i = 0; i < together; ++i) {
          const int64_t left = rows - 32 * (word + i);
          transpose_bit_block(w + 32 * (word + i) * row_words + c / 32, row_words, left < 32 ? left : 32,
                              (columns + 31) / 32, staged[i], 1);
        }
        for (int64_t i = 0; i < columns; i += kTileOutputs) {
          add_words(staged[0] + i, kTile, together, tables + word * kTableValues, c + i, count, acc);
        }
      }
    }
  }

  static void run(const X* x, const uint32_t* w, A* y, int64_t samples, int64_t rows, int64_t cols, int64_t first,
                  int64_t count, bool transposed, void* scratch) {
    const int64_t inputs = transposed ? rows : cols;
    const int64_t outputs = transposed ? cols : rows;
    const int64_t row_words = (cols + 31) / 32;
    A* tables = static_cast<A*>(scratch);
    A* acc = tables + kTableBytes / sizeof(A);
    std::memset(acc, 0, static_cast<size_t>(S * count) * sizeof(A));
    for (int64_t input = 0; input < inputs; input += 32 * kChunkWords) {
      const int64_t left = (inputs - input + 31) / 32;
      const int64_t words = left < kChunkWords ? left : kChunkWords;
      build(x, inputs, samples, input, (words + kBlockWords - 1) / kBlockWords * kBlockWords, tables);
      if (transposed) {
        add_columns(w + input * row_words + first / 32, row_words, rows - input, words, tables, count, acc);
      } else {
        add_rows(w + first * row_words + input / 32, row_words, words, tables, count, acc);
      }
    }
    for (int64_t s = 0; s < samples; ++s) {
      std::memcpy(y + s * outputs + first, acc + s * count, static_cast<size_t>(count) * sizeof(A));
    }
  }
};

// Samples go in pairs: the second one shares the transposes and the shifts.
template <typename X, typename A>
static void small_product(const X* x, const uint32_t* w, A* y, int64_t samples, int64_t rows, int64_t cols,
                          int64_t first, int64_t count, bool transposed, void* scratch) {
  const int64_t inputs = transposed ? rows : cols;
  const int64_t outputs = transposed ? cols : rows;
  for (int64_t s = 0; s < samples; s += 2) {
    const auto run = s + 2 <= samples ? &RegisterKernel<X, A, 2>::run : &RegisterKernel<X, A, 1>::run;
    run(x + s * inputs, w, y + s * outputs, samples - s < 2 ? 1 : 2, rows, cols, first, count, transposed, scratch);
  }
}

}  // namespace FASTBIN_ISA_NAMESPACE
}  // namespace fastbin

#include "cpu/bit_linear_small_entry.h"
