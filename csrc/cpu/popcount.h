// Counting bits without a popcount instruction: in bytes, on whole vectors. For the per-instruction-set files only.
#pragma once

#include "cpu/simd.h"

namespace fastbin {
namespace FASTBIN_ISA_NAMESPACE {

using Vector64 = VectorOf<uint64_t>::type;
constexpr int kVectorWords = kVectorBytes / 4;

// `count` words from p, at most a vector; the lanes past them are 0.
static FASTBIN_INLINE Vector64 load_words(const uint32_t* p, int64_t count) {
  Vector64 v = {};
  if (count >= kVectorWords) {
    std::memcpy(&v, p, sizeof(v));
  } else {
    std::memcpy(&v, p, static_cast<size_t>(count) * sizeof(uint32_t));
  }
  return v;
}

// The number of bits set in each byte: 0 to 8.
static FASTBIN_INLINE Vector64 byte_counts(Vector64 v) {
  constexpr uint64_t kPairs = 0x5555555555555555, kFours = 0x3333333333333333, kBytes = 0x0f0f0f0f0f0f0f0f;
  v = v - ((v >> 1) & kPairs);
  v = (v & kFours) + ((v >> 2) & kFours);
  return (v + (v >> 4)) & kBytes;
}

// The number of bits set in the vectors at(i, count) for i = 0, kVectorWords, ... below words, `count` words to go.
template <typename At>
static FASTBIN_INLINE int64_t count_bits(int64_t words, const At& at) {
  constexpr uint64_t kEven8 = 0x00ff00ff00ff00ff, kEven16 = 0x0000ffff0000ffff, kEven32 = 0x00000000ffffffff;
  // A byte takes 31 vectors: 31 * 8 = 248 <= 255.
  constexpr int64_t kBlock = 31 * kVectorWords;
  Vector64 total = {};
  for (int64_t begin = 0; begin < words; begin += kBlock) {
    const int64_t end = begin + kBlock < words ? begin + kBlock : words;
    Vector64 bytes = {};
    int64_t i = begin;
    for (; i + kVectorWords <= end; i += kVectorWords) bytes += byte_counts(at(i, kVectorWords));
    if (i < end) bytes += byte_counts(at(i, end - i));
    Vector64 sum = (bytes & kEven8) + ((bytes >> 8) & kEven8);
    sum = (sum + (sum >> 16)) & kEven16;
    total += (sum + (sum >> 32)) & kEven32;
  }
  int64_t result = 0;
  for (int i = 0; i < kVectorBytes / 8; ++i) result += static_cast<int64_t>(total[i]);
  return result;
}

}  // namespace FASTBIN_ISA_NAMESPACE
}  // namespace fastbin
