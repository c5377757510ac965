// csrc/cuda/ptx_hopper.h for the CPU, by the PTX ISA's description. Copies land at once, the earliest that they can;
// products are made when they are waited for, the latest: what is copied over too soon shows. Descriptors are decoded,
// and the swizzle is applied to addresses as the copy engine and the tensor cores are documented to do it. That a GPU
// reads descriptors and maps likewise is not shown by this.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <map>

#include "cuda/ptx.h"
#include "cuda/tensor_map.h"

namespace fastbin::cuda {

inline unsigned char* shared_bytes() { return reinterpret_cast<unsigned char*>(dynamic_shared()); }

// An address in the block's dynamic shared memory.
inline uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(shared) - shared_bytes());
}

inline uint32_t swizzled(uint32_t address) { return address ^ (address >> 7 & 7u) << 4; }

template <int kRegisters>
void give_registers() {}
template <int kRegisters>
void take_registers() {}

struct EmulatedBarrier {
  unsigned expected = 0, arrived = 0, phase = 0;
  int64_t bytes = 0;  // announced and not yet there

  void step() {
    emulation::progress();
    if (arrived > expected) {
      std::fprintf(stderr, "too many arrivals at an mbarrier\n");
      std::exit(3);
    }
    if (arrived == expected && bytes == 0) arrived = 0, ++phase;
  }
};

inline EmulatedBarrier& barrier_at(const void* address) {
  static std::map<const void*, EmulatedBarrier> barriers;
  return barriers[address];
}

inline void barrier_init(uint64_t* barrier, unsigned arrivals) {
  barrier_at(barrier) = EmulatedBarrier{};
  barrier_at(barrier).expected = arrivals;
}
inline void barrier_init_done() {}
inline void barrier_expect(uint64_t* barrier, unsigned bytes) {
  auto& b = barrier_at(barrier);
  b.bytes += bytes;
  ++b.arrived;
  b.step();
}
inline void barrier_arrive(uint64_t* barrier) {
  auto& b = barrier_at(barrier);
  ++b.arrived;
  b.step();
}
inline void barrier_wait(uint64_t* barrier, unsigned parity) {
  while (barrier_at(barrier).phase % 2 == parity) emulation::yield();  // the phase of this parity is not over
}

inline void copy_box(uint32_t* shared, const TensorMap& map, int word, int row, int member, uint64_t* barrier) {
  const uint32_t start = shared_address(shared);
  if (start % 1024 != 0) {
    std::fprintf(stderr, "a box must start on 1024 bytes\n");
    std::exit(3);
  }
  for (unsigned r = 0; r < map.box_rows; ++r) {
    for (int w = 0; w < 32; ++w) {
      const int64_t at_row = row + static_cast<int64_t>(r), at_word = word + w;
      const bool inside = at_row < map.rows && at_word < map.words && member < map.population;
      const uint32_t value = inside ? map.matrix[(member * map.rows + at_row) * map.words + at_word] : 0;
      std::memcpy(shared_bytes() + swizzled(start + 128 * r + 4 * static_cast<unsigned>(w)), &value, 4);
    }
  }
  auto& b = barrier_at(barrier);
  b.bytes -= 128 * map.box_rows;
  b.step();
}

// What this thread's products do, by groups; the last group is open.
inline std::vector<std::vector<std::function<void()>>>& products() {
  static std::map<const emulation::Thread*, std::vector<std::vector<std::function<void()>>>> of;
  auto& mine = of[emulation::self];
  if (mine.empty()) mine.emplace_back();
  return mine;
}

// Eight words of a row of the matrix that a descriptor names.
inline std::array<uint32_t, 8> row_of(uint64_t descriptor, unsigned row) {
  if (descriptor >> 62 != 1) {
    std::fprintf(stderr, "only the 128-byte swizzle is emulated\n");
    std::exit(3);
  }
  const auto start = static_cast<uint32_t>(descriptor & 0x3fff) * 16;
  const auto stride = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) * 16;
  std::array<uint32_t, 8> words;
  for (unsigned w = 0; w < 8; ++w) {
    const uint32_t address = swizzled(start + row / 8 * stride + row % 8 * 128 + 4 * w);
    std::memcpy(&words[w], shared_bytes() + address, 4);
  }
  return words;
}

inline void begin_products() {}
inline void commit_products() { products().emplace_back(); }
template <int kPending>
void wait_products() {
  auto& groups = products();
  while (groups.size() > kPending + 1) {
    for (const auto& multiply : groups.front()) multiply();
    groups.erase(groups.begin());
  }
  emulation::self->warp->barrier.arrive_and_wait(32);  // it is an instruction of the whole warp
}

inline void and_popcount_wgmma(int32_t (&d)[32][4], uint64_t a, uint64_t b, bool accumulate) {
  products().back().push_back([&d, a, b, accumulate] {
    const unsigned warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const std::array<uint32_t, 8> rows[2] = {row_of(a, 16 * warp + lane / 4), row_of(a, 16 * warp + lane / 4 + 8)};
    for (unsigned t = 0; t < 32; ++t) {
      for (unsigned i = 0; i < 4; ++i) {
        const auto column = row_of(b, 8 * t + 2 * (lane % 4) + i % 2);
        int32_t sum = accumulate ? d[t][i] : 0;
        for (unsigned w = 0; w < 8; ++w) sum += __popc(rows[i / 2][w] & column[w]);
        d[t][i] = sum;
      }
    }
  });
}

// What is written to shared memory is seen at once.
inline void fence_shared() {}

}  // namespace fastbin::cuda
