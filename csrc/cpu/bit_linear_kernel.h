// bit_linear for large batches: the Method of Four Russians. Samples lie side by side in an entry of 32 bytes (64 on
// AVX-512). For K inputs all 2^K subset sums are tabulated (an add each); every output then takes its K inputs with one
// load and one add: 8 K products in fp32 and 16 K in int8 (16 K and 32 K). Tables of K = 6 take 20 KiB: ten of them, 60
// inputs (five, 30 inputs). They stay in L1 while code words and accumulators stream past.
#pragma once

#include "cpu/bit_linear_isa.h"
#include "cpu/transpose_kernel.h"

namespace fastbin {
namespace FASTBIN_ISA_NAMESPACE {

constexpr int kEntryBytes = kVectorBytes > 32 ? kVectorBytes : 32;
constexpr int kTables = 20 * 1024 / (64 * kEntryBytes);  // of K = 6
constexpr int kGroupInputs = 6 * kTables;
constexpr int kGroupPadded = (kGroupInputs + 31) / 32 * 32;

// The bits of a group for one output. Kept rotated left by 4, so that one rotation and one AND give 16 times an entry's
// number; addresses scale that by 1, 2 or 4 for free, to entries of 16, 32 or 64 bytes.
template <bool kWide>
struct CodeOf {
  using type = uint64_t;
};
template <>
struct CodeOf<false> {
  using type = uint32_t;
};
using Code = CodeOf<(kGroupInputs > 32)>::type;
constexpr int kCodeBits = 8 * sizeof(Code);
constexpr int kCodeShift = 4;

FASTBIN_INLINE Code rotate_right(Code x, int n) { return n == 0 ? x : (x >> n) | (x << (kCodeBits - n)); }
FASTBIN_INLINE Code make_code(Code bits) {
  return rotate_right(bits & ((Code{1} << kGroupInputs) - 1), kCodeBits - kCodeShift);
}

// The bits of a row from bit `shift` of its word `word` on, as many as a code has; 0 past the end.
template <bool kInside>
FASTBIN_INLINE Code bits_from(const uint32_t* row, int64_t words, int64_t word, int shift) {
  const auto at = [&](int64_t i) -> uint64_t { return kInside || i < words ? row[i] : 0; };
  const uint64_t low = at(word) | at(word + 1) << 32;
  if (kCodeBits == 32) return static_cast<Code>(low >> shift);
  return static_cast<Code>(low >> shift | at(word + 2) << 1 << (63 - shift));
}

// Bits [G g, G g + G) of every row, G = kGroupInputs, become a code. 64 rows at a time: their lines stay in L1 while g
// advances.
static void bit_linear_repack(const uint32_t* w, int64_t rows, int64_t cols, int64_t first, int64_t count,
                              void* codes) {
  const int64_t words = (cols + 31) / 32;
  const int64_t groups = (cols + kGroupInputs - 1) / kGroupInputs;
  constexpr int64_t kTile = 64;
  for (int64_t r0 = first; r0 < first + count; r0 += kTile) {
    const int64_t r1 = r0 + kTile < first + count ? r0 + kTile : first + count;
    for (int64_t g = 0; g < groups; ++g) {
      Code* out = static_cast<Code*>(codes) + g * rows;
      const int64_t word = g * kGroupInputs / 32;
      const int shift = static_cast<int>(g * kGroupInputs % 32);
      if (word + 2 < words) {
        for (int64_t r = r0; r < r1; ++r) out[r] = make_code(bits_from<true>(w + r * words, words, word, shift));
      } else {
        for (int64_t r = r0; r < r1; ++r) out[r] = make_code(bits_from<false>(w + r * words, words, word, shift));
      }
    }
  }
}

// The same for the transposed product: bits (G g + i, c) become bit i of the code of column c. `first` is a multiple of
// 32.
static void bit_linear_repack_t(const uint32_t* w, int64_t rows, int64_t cols, int64_t first, int64_t count,
                                void* codes) {
  const int64_t words = (cols + 31) / 32;
  constexpr int64_t kTile = 32 * kBitBlockWords;
  constexpr int kHalves = kGroupPadded / 32;
  for (int64_t c0 = first; c0 < first + count; c0 += kTile) {
    const int64_t tile = c0 + kTile < first + count ? kTile : first + count - c0;
    for (int64_t g = 0; g * kGroupInputs < rows; ++g) {
      uint32_t bits[kHalves][kTile];
      for (int64_t h = 0; h < kHalves; ++h) {
        const int64_t r0 = g * kGroupInputs + 32 * h;
        const int64_t left = rows - r0 < 0 ? 0 : rows - r0;
        transpose_bit_block(w + r0 * words + c0 / 32, words, left < 32 ? left : 32, (tile + 31) / 32, bits[h], 1);
      }
      Code* out = static_cast<Code*>(codes) + g * cols + c0;
      for (int64_t c = 0; c < tile; ++c) {
        out[c] =
            make_code(kHalves == 1 ? bits[0][c] : static_cast<Code>(uint64_t{bits[kHalves - 1][c]} << 32 | bits[0][c]));
      }
    }
  }
}

// In fp32 the lanes are the samples' floats. In int8 they are int16: 240 inputs sum to at most 240 * 128 = 30720 in
// magnitude, then spill into int32 accumulators.
constexpr int64_t kGroupsPerSpill = 240 / kGroupInputs;

// Columns [first, first + kGroupPadded) of up to L samples as [kGroupPadded][L], zeros where there is no such column or
// sample.
template <int L>
static void load_group(const float* x, int64_t samples, int64_t inputs, int64_t first, float* out) {
  if (samples < L || first + kGroupPadded > inputs) {
    std::memset(out, 0, kGroupPadded * L * sizeof(float));
  }
  const int64_t columns = inputs - first < kGroupInputs ? inputs - first : kGroupInputs;
  for (int64_t s = 0; s < samples; s += 4) {
    if (s + 4 <= samples && first + kGroupPadded <= inputs) {
      for (int i = 0; i < kGroupPadded; i += 4) {
        Quad v[4];
        for (int j = 0; j < 4; ++j) std::memcpy(&v[j], x + (s + j) * inputs + first + i, sizeof(Quad));
        transpose_square(v);
        for (int j = 0; j < 4; ++j) std::memcpy(out + (i + j) * L + s, &v[j], sizeof(Quad));
      }
    } else {
      for (int64_t j = s; j < samples && j < s + 4; ++j) {
        for (int64_t i = 0; i < columns; ++i) out[i * L + j] = x[j * inputs + first + i];
      }
    }
  }
}

template <int L>
static void load_group(const int8_t* x, int64_t samples, int64_t inputs, int64_t first, int16_t* out) {
  if (samples < L || first + kGroupPadded > inputs) {
    std::memset(out, 0, kGroupPadded * L * sizeof(int16_t));
  }
  const int64_t columns = inputs - first < kGroupInputs ? inputs - first : kGroupInputs;
  for (int64_t s = 0; s < samples; s += 8) {
    if (s + 8 <= samples && first + kGroupPadded <= inputs) {
      for (int i = 0; i < kGroupPadded; i += 8) {
        Oct v[8];
        for (int j = 0; j < 8; ++j) {
          typedef int8_t Bytes __attribute__((vector_size(8)));
          Bytes bytes;
          std::memcpy(&bytes, x + (s + j) * inputs + first + i, sizeof(bytes));
          v[j] = __builtin_convertvector(bytes, Oct);
        }
        transpose_square(v);
        for (int j = 0; j < 8; ++j) std::memcpy(out + (i + j) * L + s, &v[j], sizeof(Oct));
      }
    } else {
      for (int64_t j = s; j < samples && j < s + 8; ++j) {
        for (int64_t i = 0; i < columns; ++i) out[i * L + j] = x[j * inputs + first + i];
      }
    }
  }
}

// All subset sums of K inputs at x [K][L]: each input doubles the table.
template <int K, typename A, int L>
static void build_table(const A* x, A* table) {
  using V = Lanes<A, L>;
  V::zero().store(table);
  for (int k = 0; k < K; ++k) {
    const V value = V::load(x + k * L);
    const int half = 1 << k;
    for (int i = 0; i < half; ++i) (V::load(table + i * L) + value).store(table + (half + i) * L);
  }
}

template <int K, typename A, int L>
FASTBIN_INLINE Lanes<A, L> look_up(const A* tables, Code code, int t) {
  constexpr uint32_t kOffsetMask = ((1u << K) - 1) << kCodeShift;
  constexpr int kScale = L * static_cast<int>(sizeof(A)) >> kCodeShift;
  const char* table = reinterpret_cast<const char*>(tables) + (t << K) * L * static_cast<int>(sizeof(A));
  const uint64_t offset = static_cast<uint32_t>(rotate_right(code, t * K)) & kOffsetMask;
  return Lanes<A, L>::load(reinterpret_cast<const A*>(table + offset * kScale));
}

// The next kCount of a group's tables into the accumulators of all outputs; `kFirst` starts them. The sum of these is
// formed apart, in two chains: it hangs on nothing of the output before, and rounds less.
template <int K, int kCount, bool kFirst, typename A, int L>
static void accumulate(const A* tables, const Code* codes, int first_table, int64_t outputs, A* acc) {
  static_assert(kCount >= 2, "a table for each chain");
#pragma GCC unroll 2
  for (int64_t r = 0; r < outputs; ++r) {
    const Code code = kCount * K == kGroupInputs ? codes[r] : rotate_right(codes[r], first_table * K);
    Lanes<A, L> sum[2] = {look_up<K, A, L>(tables, code, 0), look_up<K, A, L>(tables, code, 1)};
#pragma GCC unroll 20
    for (int t = 2; t < kCount; ++t) sum[t % 2] = sum[t % 2] + look_up<K, A, L>(tables, code, t);
    sum[0] = sum[0] + sum[1];
    if (!kFirst) sum[0] = sum[0] + Lanes<A, L>::load(acc + r * L);
    sum[0].store(acc + r * L);
  }
}

template <int K, int kCount, typename A, int L>
static void add_tables(const A* x, A* tables, const Code* codes, int first_table, int64_t outputs, bool first, A* acc) {
  for (int t = 0; t < kCount; ++t) build_table<K, A, L>(x + (first_table + t) * K * L, tables + (t << K) * L);
  if (first) {
    accumulate<K, kCount, true, A, L>(tables, codes, first_table, outputs, acc);
  } else {
    accumulate<K, kCount, false, A, L>(tables, codes, first_table, outputs, acc);
  }
}

// A group of `columns` inputs. One that has inputs for half its tables at most, as the last one may, takes two tables
// at a time: each time costs the accumulators' way once more, and a full group would look up what is 0.
template <int K, typename A, int L>
static void add_group(const A* x, int64_t columns, A* tables, const Code* codes, int64_t outputs, bool first, A* acc) {
  constexpr int kAll = kGroupInputs / K;
  if (columns * 2 > kGroupInputs) {
    add_tables<K, kAll, A, L>(x, tables, codes, 0, outputs, first, acc);
    return;
  }
  for (int t = 0; t * K < columns; t += 2) {
    add_tables<K, 2, A, L>(x, tables, codes, t, outputs, first && t == 0, acc);
  }
}

// Wide tables save loads per output and cost entries: for 30 inputs 5 * 64, 6 * 32 and 10 * 8 entries against 5, 6 and
// 10 look-ups. It goes by all outputs of the product, so that no sum depends on how they are cut into blocks.
template <typename A, int L>
static void add_group(const A* x, int64_t columns, A* tables, const Code* codes, int64_t all_outputs, int64_t outputs,
                      bool first, A* acc) {
  if (all_outputs >= 192) {
    add_group<6, A, L>(x, columns, tables, codes, outputs, first, acc);
  } else if (all_outputs >= 40) {
    add_group<5, A, L>(x, columns, tables, codes, outputs, first, acc);
  } else {
    add_group<3, A, L>(x, columns, tables, codes, outputs, first, acc);
  }
}

template <int L>
static void block(const float* x, int64_t samples, int64_t inputs, const Code* codes, int64_t code_stride,
                  int64_t outputs, float* y, int64_t y_stride, void* scratch) {
  float* tables = static_cast<float*>(scratch);
  float* values = tables + kTables * 64 * L;
  float* acc = tables + kTableBytes / sizeof(float);
  if (inputs == 0) std::memset(acc, 0, static_cast<size_t>(outputs) * L * sizeof(float));
  for (int64_t g = 0; g * kGroupInputs < inputs; ++g) {
    load_group<L>(x, samples, inputs, g * kGroupInputs, values);
    add_group<float, L>(values, inputs - g * kGroupInputs, tables, codes + g * code_stride, code_stride, outputs,
                        g == 0, acc);
  }
  store_transposed<L>(reinterpret_cast<const uint32_t*>(acc), outputs, samples, reinterpret_cast<uint32_t*>(y),
                      y_stride);
}

// Adds int16 sums into int32 ones, or starts them.
static void spill(const int16_t* acc, int64_t count, bool first, int32_t* wide) {
  if (first) {
    for (int64_t i = 0; i < count; ++i) wide[i] = acc[i];
  } else {
    for (int64_t i = 0; i < count; ++i) wide[i] += acc[i];
  }
}

template <int L>
static void block(const int8_t* x, int64_t samples, int64_t inputs, const Code* codes, int64_t code_stride,
                  int64_t outputs, int32_t* y, int64_t y_stride, void* scratch) {
  int16_t* tables = static_cast<int16_t*>(scratch);
  int16_t* values = tables + kTables * 64 * L;
  int16_t* acc = tables + kTableBytes / sizeof(int16_t);
  int32_t* wide = reinterpret_cast<int32_t*>(acc + outputs * L);
  const int64_t groups = (inputs + kGroupInputs - 1) / kGroupInputs;
  if (groups == 0) std::memset(wide, 0, static_cast<size_t>(outputs) * L * sizeof(int32_t));
  for (int64_t g = 0; g < groups; ++g) {
    load_group<L>(x, samples, inputs, g * kGroupInputs, values);
    add_group<int16_t, L>(values, inputs - g * kGroupInputs, tables, codes + g * code_stride, code_stride, outputs,
                          g % kGroupsPerSpill == 0, acc);
    if (g % kGroupsPerSpill == kGroupsPerSpill - 1 || g == groups - 1) {
      spill(acc, outputs * L, g < kGroupsPerSpill, wide);
    }
  }
  store_transposed<L>(reinterpret_cast<const uint32_t*>(wide), outputs, samples, reinterpret_cast<uint32_t*>(y),
                      y_stride);
}

// All lanes of an entry, or half of them where no more samples are left and half an entry is a vector still.
template <typename X, typename A, typename Y>
static void block_of_samples(const X* x, int64_t samples, int64_t inputs, const void* codes, int64_t code_stride,
                             int64_t outputs, Y* y, int64_t y_stride, void* scratch) {
  constexpr int kLanes = kEntryBytes / static_cast<int>(sizeof(A));
  const Code* typed = static_cast<const Code*>(codes);
  if (kEntryBytes > 32 && samples <= kLanes / 2) {
    block<kLanes / 2>(x, samples, inputs, typed, code_stride, outputs, y, y_stride, scratch);
  } else {
    block<kLanes>(x, samples, inputs, typed, code_stride, outputs, y, y_stride, scratch);
  }
}

BitLinearBlocks bit_linear_blocks() {
  return {kGroupInputs,
          sizeof(Code),
          kEntryBytes / 4,
          kEntryBytes / 2,
          bit_linear_repack,
          bit_linear_repack_t,
          block_of_samples<float, float, float>,
          block_of_samples<int8_t, int16_t, int32_t>};
}

}  // namespace FASTBIN_ISA_NAMESPACE
}  // namespace fastbin
