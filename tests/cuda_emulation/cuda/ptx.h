// csrc/cuda/ptx.h for the CPU: the same functions, by the layouts that the PTX ISA documents.
#pragma once

#include <cuda_runtime.h>
#include <immintrin.h>

#include <array>

#include "tensor_core.h"

namespace fastbin::cuda {

inline uint32_t* dynamic_shared() {
  return (*emulation::self->shared)[static_cast<std::size_t>(emulation::self->block)].data();
}

// The copy lands when wait_copies asks for it, no sooner; until then the place holds rubbish. A read that comes too
// early, or of what the copy writes over, is then wrong.
template <int kBytes>
void copy_async(uint32_t* shared, const uint32_t* global, bool valid) {
  static_assert(kBytes == 4 || kBytes == 16);
  struct alignas(kBytes) Piece {
    unsigned char bytes[kBytes];
  };
  *reinterpret_cast<Piece*>(shared) = Piece{{0x5a, 0x5a, 0x5a, 0x5a}};  // misaligned: the sanitizer tells
  if (valid) (void)*reinterpret_cast<const volatile unsigned char*>(reinterpret_cast<const Piece*>(global)->bytes);
  emulation::self->groups.back().push_back({shared, valid ? global : nullptr, kBytes});
}

inline uint64_t cache_policy(bool leaves_first) { return leaves_first; }

template <int kBytes>
void copy_async(uint32_t* shared, const uint32_t* global, bool valid, uint64_t) {
  copy_async<kBytes>(shared, global, valid);
}

inline void commit_copies() { emulation::self->groups.emplace_back(); }

template <int kPending>
void wait_copies() {
  auto& groups = emulation::self->groups;
  while (groups.size() > kPending + 1) {  // the open group is not waited for
    for (const auto& copy : groups.front()) {
      const auto bytes = static_cast<std::size_t>(copy.bytes);
      if (copy.from != nullptr) {
        std::memcpy(copy.to, copy.from, bytes);
      } else {
        std::memset(copy.to, 0, bytes);
      }
    }
    groups.erase(groups.begin());
  }
}

// The 16-byte rows whose addresses the lanes give: pick(rows) of each of the four matrices is the lane's word of it.
template <typename Pick>
void pick_of_matrices(uint32_t (&out)[4], const uint32_t* shared_row, Pick pick) {
  const auto address = reinterpret_cast<uintptr_t>(shared_row);
  const uint32_t words[2] = {static_cast<uint32_t>(address), static_cast<uint32_t>(address >> 32)};
  const auto loaded = emulation::with_warp(words, 2, [&](auto& slots) {
    std::array<uint32_t, 4> result;
    for (unsigned matrix = 0; matrix < 4; ++matrix) {
      std::array<std::array<uint16_t, 8>, 8> rows;
      for (unsigned r = 0; r < 8; ++r) {
        const auto& slot = slots[8 * matrix + r];
        const auto* row = reinterpret_cast<const uint4*>(slot[0] | static_cast<uintptr_t>(slot[1]) << 32);
        const uint4 chunk = *row;  // misaligned: the sanitizer tells
        std::memcpy(rows[r].data(), &chunk, sizeof(chunk));
      }
      result[matrix] = pick(rows);
    }
    return result;
  });
  for (int i = 0; i < 4; ++i) out[i] = loaded[static_cast<std::size_t>(i)];
}

inline void load_matrices(uint32_t (&out)[4], const uint32_t* shared_row) {
  const unsigned g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
  pick_of_matrices(out, shared_row, [=](auto& rows) { return rows[g][2 * q] | uint32_t{rows[g][2 * q + 1]} << 16; });
}

inline void load_matrices_transposed(uint32_t (&out)[4], const uint32_t* shared_row) {
  const unsigned g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
  pick_of_matrices(out, shared_row, [=](auto& rows) { return rows[2 * q][g] | uint32_t{rows[2 * q + 1][g]} << 16; });
}

inline void and_popcount_mma(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t words[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const unsigned group = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
  const auto sums = emulation::with_warp(words, 6, [&](auto& slots) {
    std::array<int32_t, 4> result{};
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned column = 2 * q + i % 2, upper = i / 2;  // the element's column, and whether its row is group + 8
      for (unsigned k = 0; k < 4; ++k) {
        const auto &row = slots[4 * group + k], &other = slots[4 * column + k];
        result[i] += __popc(row[upper] & other[4]) + __popc(row[2 + upper] & other[5]);
      }
    }
    return result;
  });
  for (int i = 0; i < 4; ++i) d[i] += sums[static_cast<std::size_t>(i)];
}

inline float float_of_half(uint16_t bits) { return _cvtsh_ss(bits); }

template <bool kHalf>
emulation::Factor factor_of(uint16_t bits) {
  return kHalf ? emulation::factor_of_float16(float_of_half(bits))
               : emulation::factor_of_bfloat16(__uint_as_float(uint32_t{bits} << 16));
}

template <bool kHalf>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t words[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const unsigned g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
  const auto sums = emulation::with_warp(words, 6, [&](auto& slots) {
    std::array<std::array<emulation::Factor, 16>, 2> rows, columns;  // g and g + 8; 2 q and 2 q + 1
    for (unsigned k = 0; k < 16; ++k) {
      const auto number = [&](unsigned lane, unsigned word) {
        return factor_of<kHalf>(static_cast<uint16_t>(slots[lane + k % 8 / 2][word] >> k % 2 * 16));
      };
      for (unsigned i = 0; i < 2; ++i) {
        rows[i][k] = number(4 * g, i + k / 8 * 2);
        columns[i][k] = number(4 * (2 * q + i), 4 + k / 8);
      }
    }
    std::array<float, 4> result;
    for (unsigned i = 0; i < 4; ++i) result[i] = emulation::add_products(d[i], rows[i / 2], columns[i % 2]);
    return result;
  });
  for (unsigned i = 0; i < 4; ++i) d[i] = sums[i];
}

inline void byte_mma(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t words[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const unsigned group = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
  const auto sums = emulation::with_warp(words, 6, [&](auto& slots) {
    std::array<int32_t, 4> result{};
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned column = 2 * q + i % 2, upper = i / 2;
      for (unsigned k = 0; k < 4; ++k) {
        const auto &row = slots[4 * group + k], &other = slots[4 * column + k];
        for (int e = 0; e < 32; e += 8) {
          result[i] += static_cast<uint8_t>(row[upper] >> e) * static_cast<int8_t>(other[4] >> e);
          result[i] += static_cast<uint8_t>(row[2 + upper] >> e) * static_cast<int8_t>(other[5] >> e);
        }
      }
    }
    return result;
  });
  for (unsigned i = 0; i < 4; ++i) d[i] += sums[i];
}

template <int kWords>
void load_words(uint32_t (&out)[kWords], const void* from) {
  struct alignas(4 * kWords) Piece {
    uint32_t words[kWords];
  };
  const Piece piece = *static_cast<const Piece*>(from);  // misaligned: the sanitizer tells
  for (int i = 0; i < kWords; ++i) out[i] = piece.words[i];
}

inline void blocks_sync() {
  emulation::self->cluster_barrier->arrive_and_wait(emulation::self->blocks * static_cast<int>(blockDim.x));
}

inline uint32_t load_from_block(const void* shared, unsigned block) {
  const auto offset = static_cast<const char*>(shared) - reinterpret_cast<const char*>(dynamic_shared());
  uint32_t word;
  std::memcpy(&word, reinterpret_cast<const char*>((*emulation::self->shared)[block].data()) + offset, 4);
  return word;
}

// Off by an ulp, up or down: what is made of it must not depend on its last bit.
inline float off_by_an_ulp(float y) {
  if (!std::isfinite(y) || y == 0.0f) return y;
  uint32_t bits = __float_as_uint(y);
  return __uint_as_float(bits % 3 == 0 ? bits + 1 : bits - 1);
}
inline float approximate_reciprocal(float x) { return off_by_an_ulp(1.0f / x); }
inline float approximate_inverse_root(float x) { return off_by_an_ulp(1.0f / std::sqrt(x)); }
inline uint16_t half_of_float(float value) {
  return static_cast<uint16_t>(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT));
}
inline uint16_t bfloat16_of_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (value != value) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);  // to nearest, ties to even
}

}  // namespace fastbin::cuda
