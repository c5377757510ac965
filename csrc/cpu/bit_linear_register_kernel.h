// bit_linear for one or two samples with tables in registers. The same word of N outputs, one to a lane, indexes a
// table of all N = 2^K subset sums of K inputs by a permute: a shift, a permute and an add for N K products (24 on
// AVX2, 64 on AVX-512), whatever lies in L1. N x N blocks of words are transposed in registers to get there.
//
// The including file defines, in this namespace: Words, kLanes (N), kBits (K), load_words, transpose_words,
// shift_right<n> and permute(table, index) for float and int32 vectors.
#pragma once

#include "cpu/bit_linear_isa.h"
#include "cpu/transpose_kernel.h"

namespace fastbin {
namespace FASTBIN_ISA_NAMESPACE {

constexpr int kWordTables = (32 + kBits - 1) / kBits;  // tables to a word; the last may be of fewer inputs
constexpr int64_t kChunkWords = 512 / kLanes;          // 22 or 16 KiB of tables a sample; 256 or 128 bytes of a row

template <typename X, typename A, int S>
struct RegisterKernel {
  using Sum = decltype(permute(static_cast<const A*>(nullptr), Words{}));
  static constexpr int kTableValues = kWordTables * S * kLanes;  // tables of one word

  // The tables of words [0, words) of a chunk: entry e of a table is the sum of the inputs at the set bits of e.
  static void build(const X* x, int64_t inputs, int64_t samples, int64_t first, int64_t words, A* tables) {
    using Values = typename VectorOf<A, kLanes * 4>::type;
    using Mask = VectorOf<int32_t, kLanes * 4>::type;
    Mask entries;
    for (int e = 0; e < kLanes; ++e) entries[e] = e;
    for (int s = 0; s < S; ++s) {
      A values[32 * kChunkWords + kBits] = {};
      const int64_t left = s < samples ? inputs - first : 0;
      for (int64_t i = 0; i < 32 * words && i < left; ++i) values[i] = static_cast<A>(x[s * inputs + first + i]);
      for (int64_t word = 0; word < words; ++word) {
        for (int t = 0; t < kWordTables; ++t) {
          Values sum = {};
          for (int k = 0; k < kBits; ++k) {
            // Past bit 31 comes another word's input, of entries that are never looked up.
            const Values value = Values{} + values[32 * word + t * kBits + k];
            sum += reinterpret_cast<Values>(reinterpret_cast<Mask>(value) & ((entries >> k & 1) != 0));
          }
          std::memcpy(tables + word * kTableValues + (t * S + s) * kLanes, &sum, sizeof(sum));
        }
      }
    }
  }

  // Adds the products of one vector of words.
  static FASTBIN_INLINE void add_word(Words word, const A* tables, Sum (&sums)[S][2]) {
#pragma GCC unroll 16
    for (int t = 0; t < kWordTables; ++t) {
      const Words index = shift_right(word, t * kBits);
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) sums[s][t % 2] = add(sums[s][t % 2], permute(tables + (t * S + s) * kLanes, index));
    }
  }

  static FASTBIN_INLINE void start(Sum (&sums)[S][2]) {
    for (int s = 0; s < S; ++s) sums[s][0] = sums[s][1] = Sum{};
  }

  // Adds sums to the accumulators [S][count] of up to kLanes outputs from r on.
  static FASTBIN_INLINE void finish(const Sum (&sums)[S][2], int64_t r, int64_t count, A* acc) {
    for (int s = 0; s < S; ++s) {
      A* out = acc + s * count + r;
      const int64_t left = count - r < kLanes ? count - r : kLanes;
      A values[kLanes];
      const Sum sum = add(sums[s][0], sums[s][1]);
      std::memcpy(values, &sum, sizeof(sum));
      for (int64_t i = 0; i < left; ++i) out[i] += values[i];
    }
  }

  // w at the chunk's first word of the first output.
  static void add_rows(const uint32_t* w, int64_t row_words, int64_t words, const A* tables, int64_t count, A* acc) {
    for (int64_t r = 0; r < count; r += kLanes) {
      Sum sums[S][2];
      start(sums);
      for (int64_t word = 0; word < words; word += kLanes) {
        const uint32_t* start_word = w + r * row_words + word;
        int64_t stride = row_words;
        uint32_t padded[kLanes * kLanes];
        if (r + kLanes > count || word + kLanes > words) {
          for (int64_t i = 0; i < kLanes; ++i) {
            for (int64_t j = 0; j < kLanes; ++j) {
              padded[i * kLanes + j] = r + i < count && word + j < words ? start_word[i * row_words + j] : 0;
            }
          }
          start_word = padded;
          stride = kLanes;
        } else {
          for (int i = 0; i < kLanes; ++i) __builtin_prefetch(start_word + (i + 2 * kLanes) * row_words);
        }
        Words block[kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) block[i] = load_words(start_word + i * stride);
        transpose_words(block);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) add_word(block[i], tables + (word + i) * kTableValues, sums);
      }
      finish(sums, r, count, acc);
    }
  }

  // The transposed product: blocks of 32 rows x 512 columns of bits are transposed to words of inputs.
  static void add_columns(const uint32_t* w, int64_t row_words, int64_t rows, int64_t words, const A* tables,
                          int64_t count, A* acc) {
    constexpr int64_t kTile = 32 * kBitBlockWords;
    for (int64_t c = 0; c < count; c += kTile) {
      const int64_t columns = count - c < kTile ? count - c : kTile;
      for (int64_t word = 0; word < words; ++word) {
        const int64_t left = rows - 32 * word;
        uint32_t tile[kTile];
        transpose_bit_block(w + 32 * word * row_words + c / 32, row_words, left < 32 ? left : 32, (columns + 31) / 32,
                            tile, 1);
        for (int64_t i = 0; i < columns; i += kLanes) {
          Sum sums[S][2];
          start(sums);
          add_word(load_words(tile + i), tables + word * kTableValues, sums);
          finish(sums, c + i, count, acc);
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
      build(x, inputs, samples, input, (words + kLanes - 1) / kLanes * kLanes, tables);
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
static void run_in_registers(const X* x, const uint32_t* w, A* y, int64_t samples, int64_t rows, int64_t cols,
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
