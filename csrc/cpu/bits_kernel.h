// The kernels of bits.h for one instruction set. A per-instruction-set file defines FASTBIN_ISA_NAMESPACE and its own
// moves of one word, `binary32`, `threshold32` and `expand32`, declared below, and then FASTBIN_BITS_KERNELS.
#pragma once

#include <cstdint>

namespace fastbin {

struct BitsKernels {
  // Pack `rows` contiguous rows. Return whether every value was legal.
  bool (*pack_threshold_f32)(const float* x, float threshold, uint32_t* words, int64_t rows, int64_t cols);
  bool (*pack_f32)(const float* x, uint32_t* words, int64_t rows, int64_t cols);
  bool (*pack_u8)(const uint8_t* x, uint32_t* words, int64_t rows, int64_t cols);
  void (*unpack_f32)(const uint32_t* words, float* y, int64_t rows, int64_t cols);
  void (*unpack_u8)(const uint32_t* words, uint8_t* y, int64_t rows, int64_t cols);
  // Transposes a tile of `rows` rows and `words` words, at most kTile of each kind (kTileWords words), from w to out.
  void (*transpose_tile)(const uint32_t* w, int64_t w_stride, int64_t rows, int64_t words, uint32_t* out,
                         int64_t out_stride, int64_t out_rows);
  int64_t (*popcount)(const uint32_t* words, int64_t n);
};

// 16 words are a cache line, which a tile's rows fill both on the way in and on the way out.
constexpr int kTileWords = 16;
constexpr int kTile = 32 * kTileWords;

namespace scalar {
extern const BitsKernels kBits;
}
#if defined(__x86_64__)
namespace avx2 {
extern const BitsKernels kBits;
}
namespace avx512 {
extern const BitsKernels kBits;
}
#endif

}  // namespace fastbin

#if defined(FASTBIN_ISA_NAMESPACE)
#include "cpu/popcount.h"

namespace fastbin {
namespace FASTBIN_ISA_NAMESPACE {

// 32 values as a word, and whether one of them was illegal (not 0 or 1; NaN).
struct Packed {
  uint32_t bits;
  bool bad;
};
static FASTBIN_INLINE Packed threshold32(const float* x, float threshold);
static FASTBIN_INLINE Packed binary32(const float* x);
static FASTBIN_INLINE Packed binary32(const uint8_t* x);
// A word as 32 values.
static FASTBIN_INLINE void expand32(uint32_t bits, float* y);
static FASTBIN_INLINE void expand32(uint32_t bits, uint8_t* y);

template <typename T, typename Pack>
static FASTBIN_INLINE bool pack_rows(const T* x, uint32_t* words, int64_t rows, int64_t cols, const Pack& pack) {
  const int64_t whole = cols / 32, rest = cols % 32;
  bool bad = false;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < whole; ++j) {
      const Packed p = pack(x + 32 * j);
      *words++ = p.bits;
      bad |= p.bad;
    }
    if (rest != 0) {
      T last[32] = {};
      std::memcpy(last, x + 32 * whole, static_cast<size_t>(rest) * sizeof(T));
      const Packed p = pack(last);
      *words++ = p.bits & ((1u << rest) - 1);  // 0 passes a negative threshold
      bad |= p.bad;
    }
    x += cols;
  }
  return !bad;
}

static bool pack_threshold_rows(const float* x, float threshold, uint32_t* words, int64_t rows, int64_t cols) {
  return pack_rows(x, words, rows, cols, [threshold](const float* p) { return threshold32(p, threshold); });
}

template <typename T>
static bool pack_binary_rows(const T* x, uint32_t* words, int64_t rows, int64_t cols) {
  return pack_rows(x, words, rows, cols, [](const T* p) { return binary32(p); });
}

template <typename T>
static void unpack_rows(const uint32_t* words, T* y, int64_t rows, int64_t cols) {
  const int64_t whole = cols / 32, rest = cols % 32;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < whole; ++j) expand32(*words++, y + 32 * j);
    if (rest != 0) {
      T last[32];
      expand32(*words++, last);
      std::memcpy(y + 32 * whole, last, static_cast<size_t>(rest) * sizeof(T));
    }
    y += cols;
  }
}

// One stage of the transpose of 32 x 32 bits (a lane each): swaps the high kShift columns of each 2 kShift with the
// low ones of the row kShift further on.
template <int kShift, typename V>
static FASTBIN_INLINE void swap_stage(V* m, uint32_t mask) {
  for (int i = 0; i < 32; ++i) {
    if (i & kShift) continue;
    const V t = ((m[i] >> kShift) ^ m[i + kShift]) & mask;
    m[i] ^= t << kShift;
    m[i + kShift] ^= t;
  }
}

// kVectorWords blocks of 32 x 32 bits go through the five stages at once: 80 swaps of 6 operations for 32 rows of a
// vector, 480 operations for 32 * 8 * kVectorBytes bits. The tile's output collects in `lines` (a cache line for each
// column) so that a column's words leave in one piece and not 4 bytes at a time, a whole row apart.
static void transpose_tile(const uint32_t* w, int64_t w_stride, int64_t rows, int64_t words, uint32_t* out,
                           int64_t out_stride, int64_t out_rows) {
  using V = VectorOf<uint32_t>::type;
  alignas(64) uint32_t lines[32 * kVectorWords][kTileWords];
  const int64_t out_words = (rows + 31) / 32;
  for (int64_t j = 0; j < words; j += kVectorWords) {
    for (int64_t k = 0; k < out_words; ++k) {
      V m[32];
      for (int i = 0; i < 32; ++i) {
        const bool inside = 32 * k + i < rows;
        const Vector64 v = load_words(inside ? w + (32 * k + i) * w_stride + j : w, inside ? words - j : 0);
        std::memcpy(&m[i], &v, sizeof(v));
      }
      swap_stage<16>(m, 0x0000ffff);
      swap_stage<8>(m, 0x00ff00ff);
      swap_stage<4>(m, 0x0f0f0f0f);
      swap_stage<2>(m, 0x33333333);
      swap_stage<1>(m, 0x55555555);
      for (int i = 0; i < 32; ++i) {
        for (int lane = 0; lane < kVectorWords; ++lane) lines[32 * lane + i][k] = m[i][lane];
      }
    }
    for (int64_t c = 0; c < 32 * kVectorWords && 32 * j + c < out_rows; ++c) {
      uint32_t* to = out + (32 * j + c) * out_stride;
      if (out_words == kTileWords) {
        std::memcpy(to, lines[c], sizeof(lines[c]));
      } else {
        for (int64_t k = 0; k < out_words; ++k) to[k] = lines[c][k];
      }
    }
  }
}

static int64_t popcount_words(const uint32_t* words, int64_t n) {
  return count_bits(n, [words](int64_t i, int64_t count) { return load_words(words + i, count); });
}

#define FASTBIN_BITS_KERNELS                                                                                          \
  {pack_threshold_rows, pack_binary_rows<float>, pack_binary_rows<uint8_t>, unpack_rows<float>, unpack_rows<uint8_t>, \
   transpose_tile,      popcount_words}

}  // namespace FASTBIN_ISA_NAMESPACE
}  // namespace fastbin
#endif
