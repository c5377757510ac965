// The update of a block of edges, 32 at a time (one word): scores, buffers and gradient stream through once, and the
// compare masks of the new scores are the new word.
//
// The including file defines FASTBIN_ISA_NAMESPACE and, inside fastbin::FASTBIN_ISA_NAMESPACE and before this header:
//   Floats                    a vector of floats with the compiler's operators
//   Quads                     as many bytes of uint64_t
//   square_root(Floats)       correctly rounded
//   less_bits(a, b)           bit i is set where a[i] < b[i]
//   multiply_low(a, b)        products of the lower 32 bits of each 64
//   low_halves(a, b)          the lower 32 bits of a's lanes and then of b's, in the order that kBlockOfLane undoes
//   kBlockOfLane[8]           the Philox block (0..7) that each 64-bit lane carries
//
// Every operation is one rounded float operation, in the order of the reference: results are equal bit for bit on all
// instruction sets. Nothing here may be contracted to a fused multiply-add.
#pragma once

#include "cpu/simd.h"
#include "cpu/update_block.h"

namespace fastbin {
namespace FASTBIN_ISA_NAMESPACE {

typedef uint32_t Words __attribute__((vector_size(sizeof(Floats))));
typedef int32_t Ints __attribute__((vector_size(sizeof(Floats))));

constexpr int kWord = 32;
constexpr int kLanes = sizeof(Floats) / sizeof(float);
constexpr int kParts = 8 / (sizeof(Quads) / sizeof(uint64_t));  // vectors that carry a word's 8 Philox blocks
constexpr int kRounds = 10;

FASTBIN_INLINE Floats splat(float x) { return x - Floats{}; }

FASTBIN_INLINE Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

FASTBIN_INLINE void store(float* p, Floats v) { std::memcpy(p, &v, sizeof(v)); }

// exp(-a) for a >= 0: 2^-n * exp(r) with n = round(a / ln 2), r = n ln 2 - a in [-ln 2 / 2, ln 2 / 2]. Adding 1.5 *
// 2^23 rounds to the nearest integer and leaves it in the mantissa's low bits, from where it goes to the exponent; a <=
// 87 keeps 127 - n above 0.
FASTBIN_INLINE Floats exp_neg(Floats a) {
  constexpr float kRounder = 12582912.0f;
  const Floats limit = splat(87.0f);
  const Floats t = a < limit ? a : limit;
  const Floats shifted = t * 1.44269504f + kRounder;
  const Floats n = shifted - kRounder;
  Floats r = n * 0.693145751953125f - t;
  r = r + n * 1.42860677e-6f;
  Floats p = splat(1.0f / 720.0f);
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * (Floats)((127u - (Words)shifted) << 23);
}

FASTBIN_INLINE Floats absolute(Floats a) { return (Floats)((Words)a & 0x7fffffffu); }

// Philox 4x32-10 (Salmon et al. 2011). Each 64-bit lane carries one block's 32-bit counter word, in its lower half: the
// multiplication reads no more than that, so the upper half of a product may stay where it is, and a round takes two
// multiplications, two shifts and four exclusive ors for every kParts-th of 8 blocks.
struct Philox {
  Quads key[kRounds][2];
  uint64_t time[2];

  explicit FASTBIN_INLINE Philox(const UpdateConstants& k) : time{k.time[0], k.time[1]} {
    for (uint32_t i = 0; i < kRounds; ++i) {
      key[i][0] = Quads{} + uint64_t{k.key[0] + i * 0x9E3779B9u};
      key[i][1] = Quads{} + uint64_t{k.key[1] + i * 0xBB67AE85u};
    }
  }

  // The uniforms in [0, 1) of the 32 elements of a word: output q of block 8 * word + j is for element 8 * q + j.
  FASTBIN_INLINE void uniforms(uint64_t word, float* out) const {
    const Quads multiplier0 = Quads{} + uint64_t{0xD2511F53u};
    const Quads multiplier1 = Quads{} + uint64_t{0xCD9E8D57u};
    Quads c[4 * kParts];  // counter word q of part i at q * kParts + i
    for (int i = 0; i < kParts; ++i) {
      std::memcpy(c + i, kBlockOfLane + i * (8 / kParts), sizeof(Quads));
      c[i] += 8 * word;
      c[kParts + i] = Quads{} + (8 * word >> 32);
      c[2 * kParts + i] = Quads{} + time[0];
      c[3 * kParts + i] = Quads{} + time[1];
    }
#pragma GCC unroll 10
    for (int round = 0; round < kRounds; ++round) {
      for (int i = 0; i < kParts; ++i) {
        const Quads product0 = multiply_low(c[i], multiplier0);
        const Quads product1 = multiply_low(c[2 * kParts + i], multiplier1);
        c[i] = (product1 >> 32) ^ c[kParts + i] ^ key[round][0];
        c[kParts + i] = product1;
        c[2 * kParts + i] = (product0 >> 32) ^ c[3 * kParts + i] ^ key[round][1];
        c[3 * kParts + i] = product0;
      }
    }
    for (int v = 0; v < kWord / kLanes; ++v) {
      const Words bits = low_halves(c[2 * v], c[2 * v + 1]) >> 8;
      store(out + v * kLanes, __builtin_convertvector((Ints)bits, Floats) * 0x1p-24f);
    }
  }
};

// Updates the 32 edges of a word and returns the new word.
template <Rule kRule, bool kSample>
FASTBIN_INLINE uint32_t update_word(float* scores, const float* grad, float* buffer0, float* buffer1,
                                    const float* uniform, uint32_t old, const UpdateConstants& k) {
  uint32_t word = kRule == Rule::kBop ? old : 0;
  for (int i = 0; i < kWord; i += kLanes) {
    if constexpr (kRule == Rule::kBop) {
      const Floats m = load(buffer0 + i) * k.decay0 + load(grad + i) * k.gain0;
      store(buffer0 + i, m);
      const uint32_t against_one = less_bits(splat(k.threshold), m);
      const uint32_t against_zero = less_bits(splat(k.threshold), -m);
      word ^= ((old >> i & against_one) | (~old >> i & against_zero)) << i;
    } else {
      Floats score = load(scores + i);
      const Floats e = exp_neg(absolute(score * k.inv_tau));
      const Floats d = e + 1.0f;
      const Floats surrogate = (e / (d * d)) * k.inv_tau;
      const Floats g = load(grad + i) * surrogate;
      Floats m = load(buffer0 + i) * k.decay0;
      if constexpr (kRule == Rule::kAdam) {
        m = m + g * k.gain0;
        const Floats v = load(buffer1 + i) * k.decay1 + (g * g) * k.gain1;
        store(buffer1 + i, v);
        score = score - (m * k.step) / (square_root(v) * k.inv_sqrt_bias + k.epsilon);
      } else {
        m = m + g;
        score = score - m * k.step;
      }
      store(buffer0 + i, m);
      const Floats upper = splat(k.clip);
      const Floats lower = splat(-k.clip);
      score = upper < score ? upper : score;
      score = score < lower ? lower : score;
      store(scores + i, score);
      if constexpr (kSample) {
        const Floats z = score * k.inv_tau;
        const Floats tail = exp_neg(absolute(z));
        const Floats numerator = z > Floats{} ? splat(1.0f) : tail;
        word |= less_bits(load(uniform + i), numerator / (tail + 1.0f)) << i;
      } else {
        word |= less_bits(Floats{}, score) << i;
      }
    }
  }
  return word;
}

// The last word of a row whose columns are no multiple of 32: through copies, for no access may pass the row's end.
template <Rule kRule, bool kSample>
uint32_t update_tail(float* scores, const float* grad, float* buffer0, float* buffer1, const float* uniform,
                     uint32_t old, const UpdateConstants& k, int64_t count) {
  float copies[4][kWord] = {};
  const size_t bytes = static_cast<size_t>(count) * sizeof(float);
  std::memcpy(copies[0], grad, bytes);
  std::memcpy(copies[1], buffer0, bytes);
  if constexpr (kRule != Rule::kBop) std::memcpy(copies[2], scores, bytes);
  if constexpr (kRule == Rule::kAdam) std::memcpy(copies[3], buffer1, bytes);
  const uint32_t word = update_word<kRule, kSample>(copies[2], copies[0], copies[1], copies[3], uniform, old, k);
  std::memcpy(buffer0, copies[1], bytes);
  if constexpr (kRule != Rule::kBop) std::memcpy(scores, copies[2], bytes);
  if constexpr (kRule == Rule::kAdam) std::memcpy(buffer1, copies[3], bytes);
  return word & ((1u << count) - 1);
}

template <Rule kRule, bool kSample>
int64_t update_block(const UpdateBlock& block, const UpdateConstants& constants) {
  const UpdateConstants k = constants;  // a local copy: no store can change it
  const Philox philox(k);
  float uniform[kWord] = {};
  int64_t flips = 0;
  for (int64_t r = 0; r < block.rows; ++r) {
    uint32_t* words = block.words + r * block.word_stride;
    for (int64_t c = 0; c < block.cols; c += kWord) {
      // A null pointer plus an offset would be undefined.
      const int64_t at = r * block.stride + c;
      float* scores = kRule == Rule::kBop ? nullptr : block.scores + at;
      const float* grad = block.grad + r * block.grad_stride + c;
      float* buffer0 = block.buffer0 + at;
      float* buffer1 = kRule == Rule::kAdam ? block.buffer1 + at : nullptr;
      const uint32_t old = words[c / kWord];
      if constexpr (kSample) {
        philox.uniforms(static_cast<uint64_t>(block.first_word + r * block.word_stride + c / kWord), uniform);
      }
      const int64_t left = block.cols - c;
      const uint32_t word = left >= kWord
                                ? update_word<kRule, kSample>(scores, grad, buffer0, buffer1, uniform, old, k)
                                : update_tail<kRule, kSample>(scores, grad, buffer0, buffer1, uniform, old, k, left);
      flips += __builtin_popcount(old ^ word);
      words[c / kWord] = word;
    }
  }
  return flips;
}

UpdateKernel update_kernel(Rule rule, bool sample) {
  switch (rule) {
    case Rule::kSgd:
      return sample ? update_block<Rule::kSgd, true> : update_block<Rule::kSgd, false>;
    case Rule::kAdam:
      return sample ? update_block<Rule::kAdam, true> : update_block<Rule::kAdam, false>;
    case Rule::kBop:
      break;
  }
  return update_block<Rule::kBop, false>;
}

}  // namespace FASTBIN_ISA_NAMESPACE
}  // namespace fastbin
