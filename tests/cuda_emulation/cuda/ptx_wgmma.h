// csrc/cuda/ptx_wgmma.h for the CPU, by the PTX ISA's description. Registers of operands are read when the products are
// waited for, the latest: bits decoded into those of a product in flight show.
#pragma once

#include <type_traits>

#include "cuda/bit_linear.h"
#include "cuda/ptx_hopper.h"

namespace fastbin::cuda {

inline unsigned cluster_rank() { return static_cast<unsigned>(emulation::self->block); }

// The address of a place of this block in another one.
template <typename T>
T* in_block(T* here, unsigned block) {
  auto* there = reinterpret_cast<unsigned char*>((*emulation::self->shared)[block].data());
  return reinterpret_cast<T*>(there + shared_address(here));
}

inline void cluster_arrive() {}
inline void cluster_wait() {
  emulation::self->cluster_barrier->arrive_and_wait(emulation::self->blocks * static_cast<int>(blockDim.x));
}

inline void reader_arrive(uint64_t* barrier, unsigned block) { barrier_arrive(in_block(barrier, block)); }
inline void cluster_barrier_wait(uint64_t* barrier, unsigned parity) { barrier_wait(barrier, parity); }

inline void copy_box_to(uint32_t* shared, const TensorMap& map, int word, int row, int member, uint64_t* barrier,
                        uint16_t blocks) {
  const int here = emulation::self->block;
  for (int block = 0; block < emulation::self->blocks; ++block) {
    if ((blocks >> block & 1) == 0) continue;
    const auto there = static_cast<unsigned>(block);
    uint32_t* place = in_block(shared, there);
    uint64_t* its_barrier = in_block(barrier, there);
    emulation::self->block = block;  // as if that block copied
    copy_box(place, map, word, row, member, its_barrier);
    emulation::self->block = here;
  }
}

template <int kBytes>
void copy_async_cached(uint32_t* shared, const uint32_t* global, bool valid) {
  copy_async<kBytes>(shared, global, valid);
}

inline void arrive_after_copies(uint64_t* barrier) {
  commit_copies();
  wait_copies<0>();
  barrier_arrive(barrier);
}

template <typename T>
void send(uint32_t* shared, const T (&values)[4], uint64_t* barrier, unsigned block) {
  std::memcpy(in_block(shared, block), values, 16);
  auto& b = barrier_at(in_block(barrier, block));
  b.bytes -= 16;
  b.step();
}

inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t select) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  uint32_t result = 0;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned which = select >> 4 * i & 0xf;
    auto byte = static_cast<uint32_t>(bytes >> 8 * (which & 7)) & 0xff;
    if (which >= 8) byte = byte >= 0x80 ? 0xff : 0;
    result |= byte << 8 * i;
  }
  return result;
}

inline uint32_t bfloat16s_of_floats(float first, float second) {
  return bfloat16_of_float(first) | static_cast<uint32_t>(bfloat16_of_float(second)) << 16;
}
inline uint32_t halves_of_floats(float first, float second) {
  return half_of_float(first) | static_cast<uint32_t>(half_of_float(second)) << 16;
}

inline uint32_t transpose_matrix(uint32_t pair) {
  return emulation::with_warp(&pair, 1, [](auto& slots) {
    const unsigned row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;  // of the transposed
    const auto at = [&](unsigned r, unsigned c) { return slots[4 * r + c / 2][0] >> c % 2 * 16 & 0xffffu; };
    return at(column, row) | at(column + 1, row) << 16;
  });
}

inline uint64_t swizzled_rows(const uint32_t* shared) {
  return uint64_t{1} << 62 | uint64_t{1024 / 16} << 32 | uint64_t{1} << 16 | (shared_address(shared) & 0x3ffffu) / 16;
}

template <int kProducts>
void settle(uint32_t (&)[kProducts][4]) {}

// Value i of 32 bytes of whole numbers, or of factors.
template <Scalar kType>
auto value_of(const uint32_t* words, unsigned i) {
  if constexpr (kType == Scalar::kInt8) {
    return int32_t{static_cast<int8_t>(words[i / 4] >> i % 4 * 8)};
  } else {
    return factor_of<kType == Scalar::kFloat16>(static_cast<uint16_t>(words[i / 2] >> i % 2 * 16));
  }
}

inline int32_t add_products(int32_t sum, const std::array<int32_t, 32>& a, const std::array<int32_t, 32>& b) {
  for (unsigned k = 0; k < 32; ++k) sum += a[k] * b[k];
  return sum;
}
using emulation::add_products;

template <Scalar kType, int kTiles, typename Sum>
void multiply_wgmma(Sum (&d)[kTiles][4], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  products().back().push_back([&d, &a, b, accumulate] {
    constexpr unsigned kValues = kType == Scalar::kInt8 ? 32 : 16, kHalf = kValues / 2, kInWord = kValues / 8;
    using Values = std::array<decltype(value_of<kType>(nullptr, 0)), kValues>;
    const unsigned lane = threadIdx.x % 32;
    // The 16 rows of the warp's part of a, out of the fragments of its lanes.
    const auto rows = emulation::with_warp(a, 4, [&](auto& slots) {
      std::array<Values, 2> values;  // rows lane / 4 and lane / 4 + 8
      for (unsigned i = 0; i < kValues; ++i) {
        const auto& slot = slots[lane / 4 * 4 + i % kHalf / kInWord];
        for (unsigned upper = 0; upper < 2; ++upper) {
          values[upper][i] = value_of<kType>(&slot[i / kHalf * 2 + upper], i % kInWord);
        }
      }
      return values;
    });
    for (unsigned t = 0; t < kTiles; ++t) {
      for (unsigned i = 0; i < 4; ++i) {
        const auto words = row_of(b, 8 * t + 2 * (lane % 4) + i % 2);
        Values column;
        for (unsigned k = 0; k < kValues; ++k) column[k] = value_of<kType>(words.data(), k);
        d[t][i] = add_products(accumulate ? d[t][i] : Sum{0}, rows[i / 2], column);
      }
    }
  });
}

// Sixteen numbers (of the sum) of a row of the matrix that a descriptor names, rows being contiguous: panels of 64,
// whose eight 128-byte lines are eight numbers of the sum.
template <bool kHalf>
std::array<emulation::Factor, 16> numbers_of(uint64_t descriptor, unsigned row) {
  const auto start = static_cast<uint32_t>(descriptor & 0x3fff) * 16;
  const auto panel = static_cast<uint32_t>(descriptor >> 16 & 0x3fff) * 16;
  const auto lines = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) * 16;
  std::array<emulation::Factor, 16> numbers;
  for (unsigned k = 0; k < 16; ++k) {
    const uint32_t address = swizzled(start + row / 64 * panel + k / 8 * lines + k % 8 * 128 + row % 64 * 2);
    uint16_t bits;
    std::memcpy(&bits, shared_bytes() + address, 2);
    numbers[k] = factor_of<kHalf>(bits);
  }
  return numbers;
}

template <bool kHalf, int kTiles>
void multiply_wgmma_columns(float (&d)[kTiles][4], uint64_t a, uint64_t b, bool accumulate) {
  products().back().push_back([&d, a, b, accumulate] {
    const unsigned warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const std::array<emulation::Factor, 16> rows[2] = {numbers_of<kHalf>(a, 16 * warp + lane / 4),
                                                       numbers_of<kHalf>(a, 16 * warp + lane / 4 + 8)};
    for (unsigned t = 0; t < kTiles; ++t) {
      for (unsigned i = 0; i < 4; ++i) {
        const auto column = numbers_of<kHalf>(b, 8 * t + 2 * (lane % 4) + i % 2);
        d[t][i] = add_products(accumulate ? d[t][i] : 0.0f, rows[i / 2], column);
      }
    }
  });
}

}  // namespace fastbin::cuda
