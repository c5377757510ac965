// Bits of w as wgmma's left operand: how they reach shared memory, and registers from there.
//
// A tile is 128 outputs, 16 to each of eight warps, and a stage 128 inputs. With g = lane / 4 and q = lane % 4, a
// lane's registers for 16 inputs of 16-bit floats are two neighbouring inputs each: [0] output g, inputs 2 q, 2 q + 1;
// [1] output g + 8, the same inputs; [2], [3] the same outputs, inputs 8 further on. For int8 and 32 inputs they are
// four inputs each, from 4 q on, and 16 further on.
#pragma once

#include "cuda/bit_linear_wgmma.h"
#include "cuda/ptx_wgmma.h"

namespace fastbin::cuda {

constexpr int kTileOutputs = 128;
constexpr int kStageInputs = 128;
constexpr int kCopiers = 128;  // threads that copy bits

template <Scalar kType>
inline constexpr uint32_t kOne = kType == Scalar::kBFloat16 ? 0x3f80 : 0x3c00;  // 1.0

// The left operand for 32 inputs: a lane's registers for each of the products that take them.
template <Scalar kType>
using Operand = uint32_t[kType == Scalar::kInt8 ? 1 : 2][4];

template <Scalar kType, bool kTransposed>
struct Bits;

// y = x wᵀ. A stage is four words of each output's row.
template <Scalar kType>
struct Bits<kType, false> {
  static constexpr int kBytes = 16 * kTileOutputs;
  using Words = uint32_t[2];  // 32 inputs of outputs g and g + 8

  static __device__ __forceinline__ void copy(uint32_t* shared, const BitProduct& p, int64_t member, int64_t output,
                                              int64_t input, int thread) {
    const int64_t words = p.words(), word = input / 32;
    const uint32_t* w = p.w + (member * p.outputs + output) * words + word;
    if (p.whole_chunks()) {
      copy_async_cached<16>(shared + 4 * thread, w + thread * words, output + thread < p.outputs);
      return;
    }
    const int column = thread % 4;  // a quad of threads takes a row's words
    w += thread / 4 * words + column;
    for (int row = thread / 4; row < kTileOutputs; row += kCopiers / 4) {
      copy_async_cached<4>(shared + 4 * row + column, w, output + row < p.outputs && word + column < words);
      w += kCopiers / 4 * words;
    }
  }

  static __device__ __forceinline__ void load(const uint32_t* shared, int word, int warp, int lane, Words& words) {
    words[0] = shared[4 * (16 * warp + lane / 4) + word];
    words[1] = shared[4 * (16 * warp + lane / 4 + 8) + word];
  }

  static __device__ __forceinline__ void decode(const Words& words, int, int lane, Operand<kType>& a) {
    const int q = lane % 4;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      if constexpr (kType == Scalar::kInt8) {
        // Bit i of four times 2^(7 i): in bit 8 i, none meets another.
        const uint32_t bits = words[row] >> (4 * q);
        a[0][row] = (bits & 0xf) * 0x204081u & 0x01010101u;
        a[0][2 + row] = (bits >> 16 & 0xf) * 0x204081u & 0x01010101u;
      } else {
        // Bits 8 i of these two are inputs 8 i + 2 q and 8 i + 2 q + 1. A pair's bytes go 16 bits apart, zeros (sign
        // bits, selected by 8) between, and times 1.0 make both values.
        const uint32_t even = __funnelshift_r(words[row], words[row], 2 * q) & 0x01010101u;
        const uint32_t odd = __funnelshift_r(words[row], words[row], 2 * q + 1) & 0x01010101u;
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) {
          a[i / 2][i % 2 * 2 + row] = permute_bytes(even, odd, 0x8480 + 0x1111 * i) * kOne<kType>;
        }
      }
    }
  }
};

// y = x w. A stage is 128 rows of w, an input each, and four words of each row. They are stored by columns of words,
// so that the words which a lane needs of a column lie together; four words between the columns spare bank conflicts.
template <Scalar kType>
struct Bits<kType, true> {
  static constexpr int kColumnWords = kStageInputs + 4;
  static constexpr int kBytes = 4 * kColumnWords * kTileOutputs / 32;
  using Words =
      uint4[2];  // of 8 inputs: int8 4 q .., 16 + 4 q ..; else 2 q, 2 q + 1, 2 q + 8, 2 q + 9, and 16 further on

  static __device__ __forceinline__ void copy(uint32_t* shared, const BitProduct& p, int64_t member, int64_t output,
                                              int64_t input, int thread) {
    const int64_t words = p.words(), word = output / 32;
    const int column = thread % 4;
    const uint32_t* w = p.w + (member * p.inner + input + thread / 4) * words + word + column;
    for (int row = thread / 4; row < kStageInputs; row += kCopiers / 4) {
      const int within = row % 16;
      const int place = kType == Scalar::kInt8 ? within : within % 8 / 2 * 4 + within / 8 * 2 + within % 2;
      copy_async_cached<4>(shared + kColumnWords * column + row - within + place, w,
                           input + row < p.inner && word + column < words);
      w += kCopiers / 4 * words;
    }
  }

  static __device__ __forceinline__ void load(const uint32_t* shared, int word, int warp, int lane, Words& words) {
    const uint32_t* from = shared + kColumnWords * (warp / 2) + 32 * word + 4 * (lane % 4);
    words[0] = *reinterpret_cast<const uint4*>(from);
    words[1] = *reinterpret_cast<const uint4*>(from + 16);
  }

  static __device__ __forceinline__ void decode(const Words& words, int warp, int lane, Operand<kType>& a) {
    const unsigned half = warp % 2 == 0 ? 0x5410 : 0x7632;  // the warp's 16 outputs of a word, from two words
    const int g = lane / 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t first = permute_bytes(words[i].x, words[i].y, half);
      const uint32_t second = permute_bytes(words[i].z, words[i].w, half);
      if constexpr (kType == Scalar::kInt8) {
        a[0][2 * i] = permute_bytes(first, second, 0x6420) >> g & 0x01010101u;
        a[0][2 * i + 1] = permute_bytes(first, second, 0x7531) >> g & 0x01010101u;
      } else {
        a[i][0] = (first >> g & 0x00010001u) * kOne<kType>;
        a[i][1] = (first >> (g + 8) & 0x00010001u) * kOne<kType>;
        a[i][2] = (second >> g & 0x00010001u) * kOne<kType>;
        a[i][3] = (second >> (g + 8) & 0x00010001u) * kOne<kType>;
      }
    }
  }
};

}  // namespace fastbin::cuda
