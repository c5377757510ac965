// Transposes in registers, for the products: 16-byte vectors of 32- or 16-bit values, and blocks of 32 x 32 bits.
#pragma once

#include "cpu/simd.h"

namespace fastbin {
namespace FASTBIN_ISA_NAMESPACE {

typedef uint32_t Quad __attribute__((vector_size(16), may_alias));
typedef int16_t Oct __attribute__((vector_size(16), may_alias));

FASTBIN_INLINE Quad zip_low(Quad a, Quad b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
FASTBIN_INLINE Quad zip_high(Quad a, Quad b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
FASTBIN_INLINE Oct zip_low(Oct a, Oct b) { return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
FASTBIN_INLINE Oct zip_high(Oct a, Oct b) { return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }

// N vectors of N values, transposed by log2(N) rounds of interleaving each vector with the one half the block away.
template <int N, typename V>
FASTBIN_INLINE void transpose_square(V (&v)[N]) {
  for (int step = 1; step < N; step *= 2) {
    V u[N];
    for (int i = 0; i < N / 2; ++i) {
      u[2 * i] = zip_low(v[i], v[i + N / 2]);
      u[2 * i + 1] = zip_high(v[i], v[i + N / 2]);
    }
    for (int i = 0; i < N; ++i) v[i] = u[i];
  }
}

// Writes acc [rows][L], samples side by side, as y [samples][y_stride].
template <int L>
static void store_transposed(const uint32_t* acc, int64_t rows, int64_t samples, uint32_t* y, int64_t y_stride) {
  int64_t r = 0;
  if (L >= 4) {
    for (; r + 4 <= rows; r += 4) {
      for (int64_t s = 0; s < samples; s += 4) {
        Quad v[4];
        for (int i = 0; i < 4; ++i) std::memcpy(&v[i], acc + (r + i) * L + s, sizeof(Quad));
        transpose_square(v);
        for (int i = 0; i < 4 && s + i < samples; ++i) std::memcpy(y + (s + i) * y_stride + r, &v[i], sizeof(Quad));
      }
    }
  }
  for (; r < rows; ++r) {
    for (int64_t s = 0; s < samples; ++s) y[s * y_stride + r] = acc[r * L + s];
  }
}

constexpr int kBitBlockWords = 16;

// Transposes up to 32 rows (w_stride words apart) of up to 16 words: bit i of out[c * out_stride] is bit c of row i,
// for all 32 * words columns c. The 16 blocks of 32 x 32 bits go side by side through five rounds of exchanging halves.
static void transpose_bit_block(const uint32_t* w, int64_t w_stride, int64_t rows, int64_t words, uint32_t* out,
                                int64_t out_stride) {
  using V = Lanes<uint32_t, kBitBlockWords>;
  V a[32];
  for (int i = 0; i < 32; ++i) {
    uint32_t padded[kBitBlockWords] = {};
    const uint32_t* row = padded;
    if (i < rows) {
      row = w + i * w_stride;
      if (words < kBitBlockWords) {
        for (int64_t j = 0; j < words; ++j) padded[j] = row[j];
        row = padded;
      }
    }
    a[i] = V::load(row);
  }
  uint32_t mask = 0x0000FFFFu;
  for (int half = 16; half != 0; half /= 2, mask ^= mask << half) {
    for (int i = 0; i < 32; i = (i + half + 1) & ~half) {
      for (int v = 0; v < V::kVectors; ++v) {
        const auto t = ((a[i].v[v] >> half) ^ a[i + half].v[v]) & mask;
        a[i + half].v[v] ^= t;
        a[i].v[v] ^= t << half;
      }
    }
  }
  uint32_t flat[32 * kBitBlockWords];
  for (int i = 0; i < 32; ++i) a[i].store(flat + i * kBitBlockWords);
  for (int64_t j = 0; j < words; ++j) {
    for (int i = 0; i < 32; ++i) out[(32 * j + i) * out_stride] = flat[i * kBitBlockWords + j];
  }
}

}  // namespace FASTBIN_ISA_NAMESPACE
}  // namespace fastbin
