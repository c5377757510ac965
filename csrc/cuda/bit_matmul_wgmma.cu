// bit_matmul by wgmma.m64n256k256 b1 (BGMMA), compute capability 9.0.
//
// A cluster of two blocks makes 256 x 256 outputs, a block 128 x 256 and each of its two consumer warpgroups 64 x 256,
// whose counts are 128 registers a thread. A stage holds 1024 bits of 128 rows of a and 256 of b, 48 KiB; four stages
// fill 192 KiB. A ninth warp keeps the stages full by the copy engine: its own rows of a, and half of b's rows for both
// blocks. If b1 is as many bytes a cycle as int8 (128 cycles a wgmma), a stage takes 1024 cycles, in which a block
// fetches 32 KiB from L2: 32 bytes a cycle where an H100's L2 gives a multiprocessor some 24, and 48 without the
// sharing.
#include "cuda/ptx_hopper.h"
#include "cuda/tile.h"

namespace fastbin::cuda {
namespace {

constexpr int kRowsA = 128;
constexpr int kRowsB = 256;
constexpr int kStageWords = 32;
constexpr int kStages = 4;
constexpr int kConsumers = 256;
constexpr int kThreads = kConsumers + 32;
constexpr unsigned kCluster = 2;
constexpr int kWordsA = kRowsA * kStageWords;
constexpr int kWordsB = kRowsB * kStageWords;
constexpr unsigned kStageBytes = 4 * (kWordsA + kWordsB);
constexpr std::size_t kSharedBytes = std::size_t{kStages} * (kStageBytes + 2 * sizeof(uint64_t));

// The descriptor of a matrix in shared memory, rows of 128 bytes in the 128-byte swizzle: address / 16 in bits 0..13,
// the 1024 bytes / 16 from one eight rows to the next in bits 32..45, and 1 for the swizzle in bits 62..63. Bits 16..29
// have no meaning for it. 32 bytes, the next 256 bits of each row, are 2 more in the address.
[[maybe_unused]] __device__ __forceinline__ uint64_t descriptor(const uint32_t* shared) {
  return uint64_t{1} << 62 | uint64_t{1024 / 16} << 32 | uint64_t{1} << 16 | (shared_address(shared) & 0x3ffffu) / 16;
}

__global__ void __launch_bounds__(kThreads, 1)
    bit_matmul_wgmma_kernel(const BitMatmul p, const __grid_constant__ TensorMap map_a,
                            const __grid_constant__ TensorMap map_b) {
// Compiled for other architectures it would not assemble; bit_matmul never launches it there.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  uint32_t* shared = dynamic_shared();
  auto* full = reinterpret_cast<uint64_t*>(shared + kStages * (kWordsA + kWordsB));
  uint64_t* empty = full + kStages;
  const unsigned rank = cluster_rank();
  const Tile tile = tile_at(blockIdx.x / kCluster, ceil_div(p.rows_a, kCluster * kRowsA), ceil_div(p.rows_b, kRowsB));
  const int64_t first_a = (tile.row * kCluster + rank) * kRowsA, first_b = tile.column * kRowsB;
  const int steps = static_cast<int>(ceil_div(p.words, kStageWords));

  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(full + stage, 1);                            // the producer; the rest are bytes
      barrier_init(empty + stage, kCluster * kConsumers / 32);  // the consumers' warps, of both blocks it is copied to
    }
    barrier_init_done();
  }
  cluster_sync();

  if (threadIdx.x >= kConsumers) {
    if (threadIdx.x == kConsumers) {
      for (int step = 0; step < steps; ++step) {
        const int stage = step % kStages;
        const unsigned parity = static_cast<unsigned>(step / kStages % 2);
        uint32_t* stage_a = shared + stage * (kWordsA + kWordsB);
        uint32_t* half_b = stage_a + kWordsA + rank * (kWordsB / kCluster);
        barrier_wait(empty + stage, parity ^ 1);  // at once in the first round
        barrier_expect(full + stage, kStageBytes);
        const int word = step * kStageWords, member = static_cast<int>(tile.member);
        copy_box(stage_a, map_a, word, static_cast<int>(first_a), member, full + stage,
                 static_cast<uint16_t>(1u << rank));
        copy_box(half_b, map_b, word, static_cast<int>(first_b + rank * (kRowsB / kCluster)), member, full + stage,
                 (1u << kCluster) - 1);
      }
    }
  } else {
    const int group = static_cast<int>(threadIdx.x / 128);
    const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
    // Each warp for itself: one whose products are done says nothing of the other warps of its group.
    const auto release = [&](int step) {
      if (threadIdx.x % 32 < kCluster) barrier_arrive(empty + step % kStages, threadIdx.x % 32);
    };
    int32_t counts[32][4];
    for (int step = 0; step < steps; ++step) {
      const int stage = step % kStages;
      barrier_wait(full + stage, static_cast<unsigned>(step / kStages % 2));
      const uint32_t* stage_a = shared + stage * (kWordsA + kWordsB);
      const uint64_t a = descriptor(stage_a + group * (kWordsA / 2)), b = descriptor(stage_a + kWordsA);
      begin_products();
#pragma unroll
      for (int k = 0; k < kStageWords / 8; ++k) and_popcount_wgmma(counts, a + 2 * k, b + 2 * k, step + k > 0);
      commit_products();
      wait_products<1>();  // those of the step before
      if (step > 0) release(step - 1);
    }
    wait_products<0>();
    store_fragment(p, tile.member, first_a + 16 * warp + lane / 4, first_b, counts);
  }
  cluster_sync();  // until then the other block may copy to this one and arrive at its barriers
#endif
}

}  // namespace

bool wgmma_fits(const BitMatmul& p) {
  const bool aligned = (reinterpret_cast<uintptr_t>(p.a) | reinterpret_cast<uintptr_t>(p.b)) % 16 == 0;
  const int64_t most = int64_t{1} << 30;  // coordinates of boxes are int32
  return aligned && p.words > 0 && p.words % 4 == 0 && p.population < most && p.rows_a < most && p.rows_b < most &&
         p.words < most;
}

void bit_matmul_wgmma(const BitMatmul& p, const Queue& queue) {
  const Shape shape = p.shape("bit_matmul_wgmma");
  const DeviceGuard guard(queue.device, shape);
  const TensorMap map_a = make_tensor_map(p.a, p.population, p.rows_a, p.words, kRowsA, shape);
  const TensorMap map_b = make_tensor_map(p.b, p.population, p.rows_b, p.words, kRowsB / kCluster, shape);
  const int64_t clusters = p.population * ceil_div(p.rows_a, kCluster * kRowsA) * ceil_div(p.rows_b, kRowsB);
  launch(shape, bit_matmul_wgmma_kernel, clusters * kCluster, kThreads, kSharedBytes, kCluster, queue, p, map_a, map_b);
}

}  // namespace fastbin::cuda
