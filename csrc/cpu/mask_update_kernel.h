// The update of a block of edges, a few words of 32 at a time: scores, buffers and gradient stream through once, and
// the compare masks of the new scores are the new words.
//
// The including file defines FASTBIN_ISA_NAMESPACE and, inside fastbin::FASTBIN_ISA_NAMESPACE and before this header:
//   Floats                    a vector of floats with the compiler's operators
//   Quads                     as many bytes of uint64_t
//   square_root(Floats)       correctly rounded
//   minimum(a, b)             a < b ? a : b
//   maximum(a, b)             a > b ? a : b
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
  const Floats t = minimum(a, splat(87.0f));
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

// What a chunk of words works on. One edge's chain of dependent operations is some 150 cycles long at about 100
// instructions, so a loop over it all would fit two or three iterations into the CPU's window and wait. Stages over a
// chunk, with their results in L1 between them, have chains of half that and less, and keep the units busy.
constexpr int kChunkWords = 8;
constexpr int kChunk = kChunkWords * kWord;

struct Chunk {
  float* scores;
  const float* grad;
  float* buffer0;
  float* buffer1;
  uint32_t* words;
  uint64_t first_word;  // for Philox
  int count;            // words, at most kChunkWords
};

FASTBIN_INLINE void exp_neg_stage(const float* scores, int elements, float inv_tau, float* out) {
  for (int i = 0; i < elements; i += kLanes) store(out + i, exp_neg(absolute(load(scores + i) * inv_tau)));
}

// Steps buffers and scores; returns the new scores.
template <Rule kRule>
FASTBIN_INLINE Floats step_scores(const Chunk& a, int i, Floats e, const UpdateConstants& k) {
  const Floats d = e + 1.0f;
  const Floats surrogate = (e / (d * d)) * k.inv_tau;
  const Floats g = load(a.grad + i) * surrogate;
  Floats score = load(a.scores + i);
  Floats m = load(a.buffer0 + i) * k.decay0;
  if constexpr (kRule == Rule::kAdam) {
    m = m + g * k.gain0;
    const Floats v = load(a.buffer1 + i) * k.decay1 + (g * g) * k.gain1;
    store(a.buffer1 + i, v);
    score = score - (m * k.step) / (square_root(v) * k.inv_sqrt_bias + k.epsilon);
  } else {
    m = m + g;
    score = score - m * k.step;
  }
  store(a.buffer0 + i, m);
  // Bounds first: the second operand is what a comparison with NaN selects, and a NaN stays visible.
  score = maximum(splat(-k.clip), minimum(splat(k.clip), score));
  store(a.scores + i, score);
  return score;
}

// Bop: a bit flips when the running mean of its gradient passes the threshold against it. Returns the flips.
FASTBIN_INLINE uint32_t step_means(const Chunk& a, int i, uint32_t old, const UpdateConstants& k) {
  const Floats m = load(a.buffer0 + i) * k.decay0 + load(a.grad + i) * k.gain0;
  store(a.buffer0 + i, m);
  return (old & less_bits(splat(k.threshold), m)) | (~old & less_bits(splat(k.threshold), -m));
}

template <Rule kRule, bool kSample>
FASTBIN_INLINE void update_chunk(const Chunk& a, const UpdateConstants& k, const Philox& philox) {
  const int elements = a.count * kWord;
  float e[kChunk];
  if constexpr (kRule != Rule::kBop) exp_neg_stage(a.scores, elements, k.inv_tau, e);
  for (int w = 0; w < a.count; ++w) {
    uint32_t word = kRule == Rule::kBop ? a.words[w] : 0;
    for (int b = 0; b < kWord; b += kLanes) {
      const int i = w * kWord + b;
      if constexpr (kRule == Rule::kBop) {
        word ^= step_means(a, i, a.words[w] >> b, k) << b;
      } else {
        word |= less_bits(Floats{}, step_scores<kRule>(a, i, load(e + i), k)) << b;
      }
    }
    a.words[w] = word;
  }
  if constexpr (kSample) {
    float uniform[kChunk];
    for (int w = 0; w < a.count; ++w) philox.uniforms(a.first_word + static_cast<uint64_t>(w), uniform + w * kWord);
    exp_neg_stage(a.scores, elements, k.inv_tau, e);
    for (int w = 0; w < a.count; ++w) {
      uint32_t word = 0;
      for (int b = 0; b < kWord; b += kLanes) {
        const int i = w * kWord + b;
        const Floats tail = load(e + i);
        const Floats numerator = load(a.scores + i) * k.inv_tau > Floats{} ? splat(1.0f) : tail;
        word |= less_bits(load(uniform + i), numerator / (tail + 1.0f)) << b;
      }
      a.words[w] = word;
    }
  }
}

// The last word of a row whose columns are no multiple of 32: through copies, for no access may pass the row's end.
template <Rule kRule, bool kSample>
void update_tail(const Chunk& a, const UpdateConstants& k, const Philox& philox, int64_t elements) {
  float copies[4][kWord] = {};
  const size_t bytes = static_cast<size_t>(elements) * sizeof(float);
  Chunk copy = a;
  copy.grad = copies[0];
  copy.buffer0 = copies[1];
  copy.scores = copies[2];
  copy.buffer1 = copies[3];
  std::memcpy(copies[0], a.grad, bytes);
  std::memcpy(copies[1], a.buffer0, bytes);
  if constexpr (kRule != Rule::kBop) std::memcpy(copies[2], a.scores, bytes);
  if constexpr (kRule == Rule::kAdam) std::memcpy(copies[3], a.buffer1, bytes);
  update_chunk<kRule, kSample>(copy, k, philox);
  std::memcpy(a.buffer0, copies[1], bytes);
  if constexpr (kRule != Rule::kBop) std::memcpy(a.scores, copies[2], bytes);
  if constexpr (kRule == Rule::kAdam) std::memcpy(a.buffer1, copies[3], bytes);
  *a.words &= (1u << elements) - 1;
}

// The chunk at column c of row r.
template <Rule kRule>
FASTBIN_INLINE Chunk chunk_at(const UpdateBlock& block, int64_t r, int64_t c, int count) {
  const int64_t at = r * block.stride + c;
  const int64_t word = r * block.word_stride + c / kWord;
  Chunk a{};
  // A null pointer plus an offset would be undefined.
  if constexpr (kRule != Rule::kBop) a.scores = block.scores + at;
  a.grad = block.grad + r * block.grad_stride + c;
  a.buffer0 = block.buffer0 + at;
  if constexpr (kRule == Rule::kAdam) a.buffer1 = block.buffer1 + at;
  a.words = block.words + word;
  a.first_word = static_cast<uint64_t>(block.first_word + word);
  a.count = count;
  return a;
}

template <Rule kRule, bool kSample>
int64_t update_block(const UpdateBlock& block, const UpdateConstants& constants) {
  const UpdateConstants k = constants;  // a local copy: no store can change it
  const Philox philox(k);
  const int64_t whole_words = block.cols / kWord;
  const int64_t tail = block.cols % kWord;
  int64_t flips = 0;
  uint32_t old[kChunkWords];
  for (int64_t r = 0; r < block.rows; ++r) {
    for (int64_t w = 0; w < whole_words; w += kChunkWords) {
      const int64_t left = whole_words - w;
      const int count = left < kChunkWords ? static_cast<int>(left) : kChunkWords;
      const Chunk chunk = chunk_at<kRule>(block, r, w * kWord, count);
      std::memcpy(old, chunk.words, static_cast<size_t>(count) * sizeof(uint32_t));
      update_chunk<kRule, kSample>(chunk, k, philox);
      for (int i = 0; i < count; ++i) flips += __builtin_popcount(old[i] ^ chunk.words[i]);
    }
    if (tail > 0) {
      const Chunk chunk = chunk_at<kRule>(block, r, whole_words * kWord, 1);
      old[0] = *chunk.words;
      update_tail<kRule, kSample>(chunk, k, philox, tail);
      flips += __builtin_popcount(old[0] ^ *chunk.words);
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
