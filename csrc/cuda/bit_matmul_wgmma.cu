// bit_matmul by wgmma.m64n256k256 b1 (BGMMA), compute capability 9.0.
//
// A block for each multiprocessor makes one tile of 128 x 256 outputs after the other; each of its two consumer
// warpgroups makes 64 x 256 of them, whose counts are 128 registers a thread. A stage holds 1024 bits of 128 rows of a
// and 256 of b, 48 KiB; four stages fill 192 KiB. A ninth warp keeps the stages full by the copy engine, and has the
// next tile's first ones filled while the consumers store this one's outputs. A product takes the tensor cores 128
// cycles and a stage 1024, in which 48 KiB come from L2, 48 bytes a cycle, and the products read 80 KiB of shared
// memory: with the copies' 48, all of the 128 bytes a cycle that it serves.
#include <algorithm>

#include "cuda/ptx_hopper.h"
#include "cuda/tile.h"

namespace fastbin::cuda {
namespace {

constexpr int kRowsA = 128;
constexpr int kRowsB = 256;
[[maybe_unused]] constexpr int kBand =
    16;  // of tiles, 2048 rows of a: with 132 blocks, about as many rows of b meet them
constexpr int kStageWords = 32;
constexpr int kStages = 4;
constexpr int kConsumers = 256;
constexpr int kThreads = kConsumers + 128;
// A block of 384 threads is launched with 168 registers for each, too few beside 128 counts.
[[maybe_unused]] constexpr int kProducerRegisters = 24;
[[maybe_unused]] constexpr int kConsumerRegisters = 240;
constexpr int kWordsA = kRowsA * kStageWords;
constexpr int kWordsB = kRowsB * kStageWords;
constexpr unsigned kStageBytes = 4 * (kWordsA + kWordsB);
constexpr std::size_t kSharedBytes = std::size_t{kStages} * (kStageBytes + 2 * sizeof(uint64_t));

__host__ __device__ constexpr int64_t count_tiles(const BitMatmul& p) {
  return p.population * ceil_div(p.rows_a, kRowsA) * ceil_div(p.rows_b, kRowsB);
}

// The descriptor of a matrix in shared memory, rows of 128 bytes in the 128-byte swizzle: address / 16 in bits 0..13,
// the 1024 bytes / 16 from one eight rows to the next in bits 32..45, and 1 for the swizzle in bits 62..63. Bits 16..29
// have no meaning for it. 32 bytes, the next 256 bits of each row, are 2 more in the address.
[[maybe_unused]] __device__ __forceinline__ uint64_t descriptor(const uint32_t* shared) {
  return uint64_t{1} << 62 | uint64_t{1024 / 16} << 32 | uint64_t{1} << 16 | (shared_address(shared) & 0x3ffffu) / 16;
}

// Stages in turn: the next one, and the parity of the phase that its barriers are in.
template <int kCount>
struct Turn {
  int stage = 0;
  unsigned parity = 0;

  __device__ void next() {
    if (++stage == kCount) stage = 0, parity ^= 1;
  }
};

__global__ void __launch_bounds__(kThreads, 1)
    bit_matmul_wgmma_kernel(const BitMatmul p, const __grid_constant__ TensorMap map_a,
                            const __grid_constant__ TensorMap map_b) {
// Compiled for other architectures it would not assemble; bit_matmul never launches it there.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  uint32_t* shared = dynamic_shared();
  auto* full = reinterpret_cast<uint64_t*>(shared + kStages * (kWordsA + kWordsB));
  uint64_t* empty = full + kStages;
  const int64_t tile_rows = ceil_div(p.rows_a, kRowsA), tile_columns = ceil_div(p.rows_b, kRowsB);
  const int tiles = static_cast<int>(count_tiles(p)), blocks = static_cast<int>(gridDim.x);
  const int steps = static_cast<int>(ceil_div(p.words, kStageWords));

  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(full + stage, 1);                 // the producer; the rest are bytes
      barrier_init(empty + stage, kConsumers / 32);  // the consumers' warps
    }
    barrier_init_done();
  }
  __syncthreads();

  Turn<kStages> turn;
  if (threadIdx.x >= kConsumers) {
    give_registers<kProducerRegisters>();
    if (threadIdx.x > kConsumers) return;
    for (int index = static_cast<int>(blockIdx.x); index < tiles; index += blocks) {
      const Tile tile = tile_at(index, tile_rows, tile_columns, kBand);
      const int member = static_cast<int>(tile.member);
      const int first_a = static_cast<int>(tile.row) * kRowsA, first_b = static_cast<int>(tile.column) * kRowsB;
      for (int step = 0; step < steps; ++step, turn.next()) {
        uint32_t* stage_a = shared + turn.stage * (kWordsA + kWordsB);
        barrier_wait(empty + turn.stage, turn.parity ^ 1);  // at once in the first round
        barrier_expect(full + turn.stage, kStageBytes);
        copy_box(stage_a, map_a, step * kStageWords, first_a, member, full + turn.stage);
        copy_box(stage_a + kWordsA, map_b, step * kStageWords, first_b, member, full + turn.stage);
      }
    }
    return;
  }
  take_registers<kConsumerRegisters>();
  const int group = static_cast<int>(threadIdx.x / 128);
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  for (int index = static_cast<int>(blockIdx.x); index < tiles; index += blocks) {
    const Tile tile = tile_at(index, tile_rows, tile_columns, kBand);
    const int64_t row = tile.row * kRowsA + 16 * warp + lane / 4, column = tile.column * kRowsB;
    const auto thresholds = load_thresholds<32>(p, tile.member, row, column);
    int32_t counts[32][4];
#pragma unroll 1
    for (int step = 0; step < steps; ++step, turn.next()) {
      barrier_wait(full + turn.stage, turn.parity);
      const uint32_t* stage_a = shared + turn.stage * (kWordsA + kWordsB);
      const uint64_t a = descriptor(stage_a + group * (kWordsA / 2)), b = descriptor(stage_a + kWordsA);
      begin_products();
#pragma unroll
      for (int k = 0; k < kStageWords / 8; ++k) and_popcount_wgmma(counts, a + 2 * k, b + 2 * k, step + k > 0);
      commit_products();
      wait_products<0>();  // the other warpgroup's keep the tensor cores busy
      if (lane == 0) barrier_arrive(empty + turn.stage);
    }
    store_fragment(p, tile.member, row, column, counts, thresholds);
  }
#endif
}

}  // namespace

bool wgmma_fits(const BitMatmul& p) {
  const bool aligned = (reinterpret_cast<uintptr_t>(p.a) | reinterpret_cast<uintptr_t>(p.b)) % 16 == 0;
  const int64_t most = int64_t{1} << 30;  // coordinates of boxes are int32, and so is a tile's index
  return aligned && p.words > 0 && p.words % 4 == 0 && p.population < most && p.rows_a < most && p.rows_b < most &&
         p.words < most && count_tiles(p) < most;
}

void bit_matmul_wgmma(const BitMatmul& p, const Queue& queue) {
  const Shape shape = p.shape("bit_matmul_wgmma");
  const DeviceGuard guard(queue.device, shape);
  const TensorMap map_a = make_tensor_map(p.a, p.population, p.rows_a, p.words, kRowsA, shape);
  const TensorMap map_b = make_tensor_map(p.b, p.population, p.rows_b, p.words, kRowsB, shape);
  const int64_t blocks =
      std::min<int64_t>(count_tiles(p), attribute(cudaDevAttrMultiProcessorCount, queue.device, shape));
  launch(shape, bit_matmul_wgmma_kernel, blocks, kThreads, kSharedBytes, queue, p, map_a, map_b);
}

}  // namespace fastbin::cuda
