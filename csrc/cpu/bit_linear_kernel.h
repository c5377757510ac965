// bit_linear for large batches: the Method of Four Russians. Samples lie side by side in a vector. For K inputs all 2^K
// subset sums are tabulated (an add each); every output then takes its K inputs with one load and one add, 16 K
// products in fp32 and 32 K in int8. Tables of 30 inputs, K = 6, are 5 * 64 * 64 bytes = 20 KiB: they stay in L1 while
// code words and accumulators stream past.
#pragma once

#include "cpu/bit_linear_isa.h"
#include "cpu/transpose_kernel.h"

namespace fastbin {
namespace FASTBIN_ISA_NAMESPACE {

constexpr uint32_t kGroupMask = (1u << kGroupInputs) - 1;
// Codes are kept rotated left by 4, so that one rotation and one AND give 16 times the entry's number; addresses scale
// that by 1, 2 or 4 for free, to entries of 16, 32 or 64 bytes.
constexpr int kCodeShift = 4;

FASTBIN_INLINE uint32_t rotate_right(uint32_t x, int n) { return n == 0 ? x : (x >> n) | (x << (32 - n)); }
FASTBIN_INLINE uint32_t make_code(uint32_t bits) { return rotate_right(bits & kGroupMask, 32 - kCodeShift); }

// Bits [30 g, 30 g + 30) of every row become a code. 64 rows at a time: their lines stay in L1 while g advances.
void bit_linear_repack(const uint32_t* w, int64_t rows, int64_t cols, int64_t first, int64_t count, uint32_t* codes) {
  const int64_t words = (cols + 31) / 32;
  const int64_t groups = (cols + kGroupInputs - 1) / kGroupInputs;
  constexpr int64_t kTile = 64;
  for (int64_t r0 = first; r0 < first + count; r0 += kTile) {
    const int64_t r1 = r0 + kTile < first + count ? r0 + kTile : first + count;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t word = g * kGroupInputs / 32;
      const int shift = static_cast<int>(g * kGroupInputs % 32);
      const int64_t next = word + 1 < words ? word + 1 : word;
      uint32_t* out = codes + g * rows;
      for (int64_t r = r0; r < r1; ++r) {
        const uint64_t high = w[r * words + next];
        out[r] = make_code(static_cast<uint32_t>((high << 32 | w[r * words + word]) >> shift));
      }
    }
  }
}

// The same for the transposed product: bits (30 g + i, c) become bit i of the code of column c. `first` is a multiple
// of 32.
void bit_linear_repack_t(const uint32_t* w, int64_t rows, int64_t cols, int64_t first, int64_t count, uint32_t* codes) {
  const int64_t words = (cols + 31) / 32;
  constexpr int64_t kTile = 32 * kBitBlockWords;
  for (int64_t c0 = first; c0 < first + count; c0 += kTile) {
    const int64_t tile = c0 + kTile < first + count ? kTile : first + count - c0;
    for (int64_t g = 0; g * kGroupInputs < rows; ++g) {
      const int64_t r0 = g * kGroupInputs;
      const int64_t group_rows = r0 + kGroupInputs < rows ? kGroupInputs : rows - r0;
      uint32_t bits[kTile];
      transpose_bit_block(w + r0 * words + c0 / 32, words, group_rows, (tile + 31) / 32, bits, 1);
      uint32_t* out = codes + g * cols + c0;
      for (int64_t c = 0; c < tile; ++c) out[c] = make_code(bits[c]);
    }
  }
}

// In fp32 the lanes are the samples' floats. In int8 they are int16: 8 groups sum to at most 8 * 30 * 128 = 30720 in
// magnitude, then spill into int32 accumulators.
constexpr int64_t kGroupsPerSpill = 8;

// Columns [first, first + 32) of up to L samples as [32][L], zeros where there is no such column or sample.
template <int L>
static void load_group(const float* x, int64_t samples, int64_t inputs, int64_t first, float* out) {
  if (samples < L || first + 32 > inputs) {
    std::memset(out, 0, 32 * L * sizeof(float));
  }
  const int64_t columns = inputs - first < kGroupInputs ? inputs - first : kGroupInputs;
  for (int64_t s = 0; s < samples; s += 4) {
    if (s + 4 <= samples && first + 32 <= inputs) {
      for (int i = 0; i < 32; i += 4) {
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
  if (samples < L || first + 32 > inputs) {
    std::memset(out, 0, 32 * L * sizeof(int16_t));
  }
  const int64_t columns = inputs - first < kGroupInputs ? inputs - first : kGroupInputs;
  for (int64_t s = 0; s < samples; s += 8) {
    if (s + 8 <= samples && first + 32 <= inputs) {
      for (int i = 0; i < 32; i += 8) {
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
FASTBIN_INLINE Lanes<A, L> look_up(const A* tables, uint32_t code, int t) {
  constexpr uint32_t kOffsetMask = ((1u << K) - 1) << kCodeShift;
  constexpr int kScale = L * static_cast<int>(sizeof(A)) >> kCodeShift;
  const char* table = reinterpret_cast<const char*>(tables) + (t << K) * L * static_cast<int>(sizeof(A));
  const uint64_t offset = rotate_right(code, t * K) & kOffsetMask;
  return Lanes<A, L>::load(reinterpret_cast<const A*>(table + offset * kScale));
}

// One group into the accumulators of all outputs; `kFirst` starts them. The sum of a group is formed apart, as a tree:
// shorter dependency chains and less rounding.
template <int K, bool kFirst, typename A, int L>
static void accumulate(const A* tables, const uint32_t* codes, int64_t outputs, A* acc) {
  constexpr int kTables = static_cast<int>(kGroupInputs) / K;
  for (int64_t r = 0; r < outputs; ++r) {
    const uint32_t code = codes[r];
    Lanes<A, L> sum = look_up<K, A, L>(tables, code, 0) + look_up<K, A, L>(tables, code, 1);
    for (int t = 2; t + 1 < kTables; t += 2) {
      sum = sum + (look_up<K, A, L>(tables, code, t) + look_up<K, A, L>(tables, code, t + 1));
    }
    if (kTables % 2 == 1) sum = sum + look_up<K, A, L>(tables, code, kTables - 1);
    if (!kFirst) sum = sum + Lanes<A, L>::load(acc + r * L);
    sum.store(acc + r * L);
  }
}

template <int K, typename A, int L>
static void add_group(const A* x, A* tables, const uint32_t* codes, int64_t outputs, bool first, A* acc) {
  for (int t = 0; t < kGroupInputs / K; ++t) build_table<K, A, L>(x + t * K * L, tables + (t << K) * L);
  if (first) {
    accumulate<K, true, A, L>(tables, codes, outputs, acc);
  } else {
    accumulate<K, false, A, L>(tables, codes, outputs, acc);
  }
}

// Wide tables save loads per output and cost entries: 5 * 64, 6 * 32 and 10 * 8 entries against 5, 6 and 10 look-ups.
template <typename A, int L>
static void add_group(const A* x, A* tables, const uint32_t* codes, int64_t outputs, bool first, A* acc) {
  if (outputs >= 192) {
    add_group<6, A, L>(x, tables, codes, outputs, first, acc);
  } else if (outputs >= 40) {
    add_group<5, A, L>(x, tables, codes, outputs, first, acc);
  } else {
    add_group<3, A, L>(x, tables, codes, outputs, first, acc);
  }
}

template <int L>
static void block(const float* x, int64_t samples, int64_t inputs, const uint32_t* codes, int64_t code_stride,
                  int64_t outputs, float* y, int64_t y_stride, void* scratch) {
  float* tables = static_cast<float*>(scratch);
  float* values = tables + 5 * 64 * L;
  float* acc = tables + kTableBytes / sizeof(float);
  if (inputs == 0) std::memset(acc, 0, static_cast<size_t>(outputs) * L * sizeof(float));
  for (int64_t g = 0; g * kGroupInputs < inputs; ++g) {
    load_group<L>(x, samples, inputs, g * kGroupInputs, values);
    add_group<float, L>(values, tables, codes + g * code_stride, outputs, g == 0, acc);
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
static void block(const int8_t* x, int64_t samples, int64_t inputs, const uint32_t* codes, int64_t code_stride,
                  int64_t outputs, int32_t* y, int64_t y_stride, void* scratch) {
  int16_t* tables = static_cast<int16_t*>(scratch);
  int16_t* values = tables + 5 * 64 * L;
  int16_t* acc = tables + kTableBytes / sizeof(int16_t);
  int32_t* wide = reinterpret_cast<int32_t*>(acc + outputs * L);
  const int64_t groups = (inputs + kGroupInputs - 1) / kGroupInputs;
  if (groups == 0) std::memset(wide, 0, static_cast<size_t>(outputs) * L * sizeof(int32_t));
  for (int64_t g = 0; g < groups; ++g) {
    load_group<L>(x, samples, inputs, g * kGroupInputs, values);
    add_group<int16_t, L>(values, tables, codes + g * code_stride, outputs, g % kGroupsPerSpill == 0, acc);
    if (g % kGroupsPerSpill == kGroupsPerSpill - 1 || g == groups - 1) {
      spill(acc, outputs * L, g < kGroupsPerSpill, wide);
    }
  }
  store_transposed<L>(reinterpret_cast<const uint32_t*>(wide), outputs, samples, reinterpret_cast<uint32_t*>(y),
                      y_stride);
}

void bit_linear_block(const float* x, int64_t samples, int64_t inputs, const uint32_t* codes, int64_t code_stride,
                      int64_t outputs, float* y, int64_t y_stride, void* scratch) {
  if (samples > 8) {
    block<16>(x, samples, inputs, codes, code_stride, outputs, y, y_stride, scratch);
  } else {
    block<8>(x, samples, inputs, codes, code_stride, outputs, y, y_stride, scratch);
  }
}

void bit_linear_block(const int8_t* x, int64_t samples, int64_t inputs, const uint32_t* codes, int64_t code_stride,
                      int64_t outputs, int32_t* y, int64_t y_stride, void* scratch) {
  if (samples > 16) {
    block<32>(x, samples, inputs, codes, code_stride, outputs, y, y_stride, scratch);
  } else {
    block<16>(x, samples, inputs, codes, code_stride, outputs, y, y_stride, scratch);
  }
}

}  // namespace FASTBIN_ISA_NAMESPACE
}  // namespace fastbin
