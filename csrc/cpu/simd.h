// Native vectors by compiler extension (GCC, Clang): one source compiles to SSE2, AVX2, AVX-512 or NEON.
//
// Included only by the per-instruction-set files (*_scalar.cpp, *_avx2.cpp, *_avx512.cpp), which define
// FASTBIN_ISA_NAMESPACE first, so that no function here can be shared by the linker between instruction sets.
#pragma once

#include <cstdint>
#include <cstring>

#if !defined(FASTBIN_ISA_NAMESPACE)
#error "define FASTBIN_ISA_NAMESPACE (scalar, avx2 or avx512) before including cpu/simd.h"
#endif

#define FASTBIN_INLINE inline __attribute__((always_inline))

namespace fastbin {
namespace FASTBIN_ISA_NAMESPACE {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename T, int Bytes = kVectorBytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(Bytes), may_alias));
};

// N values of T as whole native vectors, or as one narrower vector where they do not fill a native one.
template <typename T, int N>
struct Lanes {
  static constexpr int kBytes =
      N * static_cast<int>(sizeof(T)) < kVectorBytes ? N * static_cast<int>(sizeof(T)) : kVectorBytes;
  using Vector = typename VectorOf<T, kBytes>::type;
  static constexpr int kPerVector = kBytes / static_cast<int>(sizeof(T));
  static constexpr int kVectors = N / kPerVector;
  static_assert(N % kPerVector == 0, "whole vectors only");
  Vector v[kVectors];

  // A vector at a time, unrolled early: GCC would otherwise keep a Lanes of several vectors in memory.
  static FASTBIN_INLINE Lanes load(const T* p) {
    Lanes r;
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; ++i) std::memcpy(&r.v[i], p + i * kPerVector, kBytes);
    return r;
  }
  FASTBIN_INLINE void store(T* p) const {
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; ++i) std::memcpy(p + i * kPerVector, &v[i], kBytes);
  }
  static FASTBIN_INLINE Lanes zero() {
    Lanes r;
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; ++i) r.v[i] = Vector{};
    return r;
  }
  friend FASTBIN_INLINE Lanes operator+(Lanes a, const Lanes& b) {
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; ++i) a.v[i] += b.v[i];
    return a;
  }
};

}  // namespace FASTBIN_ISA_NAMESPACE
}  // namespace fastbin
