// What bit_linear_vector multiplies: bits masked out of words, and values of x that carry the inverse powers of two.
//
// mma.sync wants 16 x 16 float16 or 16 x 32 bytes of w, two or four to a register. A mask keeps of each half (byte) of
// a word one bit, the same one, which is a number then, and x carries the inverse power of two: every input has its own
// place in a word, which inputs meet in a product does not matter, and the powers cancel. So a register of the left
// operand costs one operation. Where a lane's words are those of one row, x is dealt out likewise.
//
//   Way::kBytes   Bit p of a byte is 2^p. x is an integer of 24 bits (16-bit floats) or 8 in units of its chunk's
//                 scale; times 2^(7 - p) it is cut into 4 or 2 signed bytes, columns of the right operand. Products of
//                 32 inputs at a time, exact. For as few samples as the columns allow, and for int8.
//   Way::kHalf    A shift for each four bits of a half puts them on bits 10 .. 13 of its exponent, which are 2^-14,
//                 2^-13, 2^-11 and 2^-7. x is float16 in units of its chunk's scale. Twice the masks and products of
//                 kBytes, a quarter of its columns. (Lower bits need no shift, but are denormals, and the tensor cores
//                 add a denormal's product with the bits that are left when it is taken to be as large as 2^-14.)
//
// A chunk of 512 inputs has its own scale, 2^e <= its largest value < 2^(e + 1). An input of 16 bits is off by at most
// 2^-23 (kBytes) or 2^-33 (kHalf) of its chunk's largest. Chunks are added in float32 in a fixed order. Infinities and
// NaN make every output of their sample NaN. int8 is exact.
#pragma once

#include "cuda/bit_linear.h"
#include "cuda/ptx.h"

namespace fastbin::cuda {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kChunk = 512;  // inputs: 16 words of a row, 4 for each lane of a quad

enum class Way { kBytes, kHalf };

// Columns of the right operand of a sample whose values have kBytes bytes.
__host__ __device__ constexpr int columns_of(int bytes, Way way) { return way == Way::kHalf ? 1 : bytes == 2 ? 4 : 2; }

// 16-byte pieces of the right operand of a chunk: a column's for a lane are its 4 words' registers.
__host__ __device__ constexpr int pieces_of(Way way, int columns) { return 4 * (way == Way::kHalf ? 16 : 8) * columns; }

// Bits 4 h .. 4 h + 3 of both halves of a word in the place of a float16's exponent, from bit 10 on; one of them alone
// is 2^exponent_of_bit.
__device__ __forceinline__ uint32_t exponent_bits(uint32_t word, int h) {
  return h < 3 ? word << (10 - 4 * h) : word >> 2;
}
__host__ __device__ constexpr int exponent_of_bit(int bit) { return (1 << bit) - 15; }

// 2^exponent, from 2^-126 on.
__device__ __forceinline__ float power(int exponent) {
  return __uint_as_float(static_cast<uint32_t>(exponent + 127) << 23);
}

// Four neighbouring values as they lie in memory, those past `left` as zeros.
template <int kBytes>
__device__ __forceinline__ void load_four(uint32_t (&four)[kBytes], const void* x, int64_t at, int64_t left,
                                          bool whole) {
  const auto* from = static_cast<const unsigned char*>(x) + at * kBytes;
#pragma unroll
  for (int i = 0; i < kBytes; ++i) four[i] = 0;
  if (whole && left >= 4) return load_words(four, from);
#pragma unroll
  for (int i = 0; i < 4 * kBytes; ++i) {
    if (i / kBytes < left) four[i / 4] |= static_cast<uint32_t>(from[i]) << 8 * (i % 4);
  }
}

template <int kBytes>
__device__ __forceinline__ float value_of(const uint32_t (&four)[kBytes], int i, Scalar type) {
  const uint32_t bits = four[i * kBytes / 4] >> 8 * (i * kBytes % 4);
  if constexpr (kBytes == 1) return static_cast<float>(static_cast<signed char>(bits & 0xff));
  if (type == Scalar::kBFloat16) return __uint_as_float(bits << 16);
  return float_of_half(static_cast<uint16_t>(bits & 0xffff));
}

// 16 values of a chunk, four times four, become pieces of the right operand; the lanes of the warp have the others. Way
// kHalf: a lane's values i and i + 4 of each eight are bits p and p + 16 of a word, four p from 4 (g % 4) on. Way
// kBytes: i, i + 4, i + 8, i + 12 are bits p, p + 8, p + 16, p + 24, four p from 4 (g % 2) on.
template <int kBytes, Way kWay, int kColumns>
__device__ __forceinline__ void put(uint4* to, float* unit_to, const uint32_t (&fours)[4][kBytes], Scalar type) {
  constexpr int kPerSample = columns_of(kBytes, kWay);
  const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4;
  float v[16], largest = 0.0f;
#pragma unroll
  for (int i = 0; i < 16; ++i) v[i] = value_of(fours[i / 4], i % 4, type);
  int exponent = 0;
  if constexpr (kBytes > 1) {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const float size = fabsf(v[i]);
      largest = fmaxf(largest, size <= 3.4028235e38f ? size : __int_as_float(0x7f800000));  // fmaxf would lose a NaN
    }
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) largest = fmaxf(largest, __shfl_xor_sync(kAll, largest, mask));
    const bool finite = largest <= 3.4028235e38f;
    constexpr int kLeast = kWay == Way::kHalf ? -112 : -119;  // so that scales and units are numbers
    exponent = static_cast<int>(__float_as_uint(largest) >> 23) - 127;
    if (!finite || exponent < kLeast) exponent = kLeast;
    if (!finite) {
#pragma unroll
      for (int i = 0; i < 16; ++i) v[i] = 0.0f;
    }
    const int unit = kWay == Way::kHalf ? exponent : exponent - 22;
    if (lane < kPerSample) unit_to[lane] = finite ? ldexpf(1.0f, unit) : __int_as_float(0x7fc00000);
  }

  if constexpr (kWay == Way::kHalf) {
#pragma unroll
    for (int eight = 0; eight < 2; ++eight) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float scale = power(1 - exponent - exponent_of_bit(i));
        words[i] = half_of_float(v[8 * eight + i] * scale) |
                   static_cast<uint32_t>(half_of_float(v[8 * eight + 4 + i] * scale)) << 16;
      }
      to[((g / 4 + 2 * eight) * 4 + g % 4) * (4 * kColumns)] = make_uint4(words[0], words[1], words[2], words[3]);
    }
  } else {
    uint32_t words[kPerSample][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t digits[4];  // the signed bytes of each value
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        const int up = kBytes == 2 ? 22 - exponent : 0;
        const int shift = 7 - 4 * (g % 2) - i;
        const int32_t integer = __float2int_rn(v[4 * b + i] * power(up / 2) * power(up - up / 2));
        // Adding 2^7 to each byte but the last carries what a signed one cannot hold. |integer| < 2^23 and 2^7 times as
        // much fits 32 bits.
        constexpr uint32_t kBias = kBytes == 2 ? 0x808080u : 0x80u;
        digits[b] = ((static_cast<uint32_t>(integer) << shift) + kBias) ^ kBias;
      }
      const auto transposed = [&](uint32_t pick) {  // byte j or j + 1 of all four
        return __byte_perm(__byte_perm(digits[0], digits[1], pick), __byte_perm(digits[2], digits[3], pick), 0x5410);
      };
#pragma unroll
      for (int c = 0; c < kPerSample; ++c) {
        words[c][i] = transposed(static_cast<uint32_t>(0x40 + 0x11 * c));
      }
    }
    uint4* place = to + g * (4 * kColumns);
#pragma unroll
    for (int c = 0; c < kPerSample; ++c) place[4 * c] = make_uint4(words[c][0], words[c][1], words[c][2], words[c][3]);
  }
}

}  // namespace fastbin::cuda
