// bit_matmul by mma.sync.m16n8k256 b1 (BMMA), compute capability 8.0 to 9.0.
//
// A block of four warps makes 128 x 128 outputs, a warp 64 x 64 of them. A stage holds 512 bits of 128 rows of a and of
// b: 16 KiB, and four stages 64 KiB, so that two blocks fit a multiprocessor with 164 KiB, and one that with 100 KiB of
// compute capability 8.6. A stage is 64 products a warp for 16 ldmatrix. On an A100 a product takes a multiprocessor 2
// cycles (16384 bit products a cycle), so a stage of 256 products takes 512; shared memory serves 64 ldmatrix of 512
// bytes and 16 KiB of copies at 128 bytes a cycle in 384.
#include "cuda/tile.h"

namespace fastbin::cuda {
namespace {

constexpr int kTile = 128;
constexpr int kThreads = 128;
constexpr int kStageWords = 16;
constexpr int kStages = 4;
constexpr int kOperandWords = kTile * kStageWords;
constexpr std::size_t kSharedBytes = sizeof(uint32_t) * kStages * 2 * kOperandWords;

// Where 16-byte chunk `chunk` of row `row` lies in a stage, in words. A row is 64 bytes, half of the 32 banks: the
// chunks of eight rows on end, which ldmatrix reads at a time, fall on different banks.
__device__ __forceinline__ int place(int row, int chunk) { return row * kStageWords + (chunk ^ (row / 2 % 4)) * 4; }

// Starts the copy of a stage of one operand: rows first_row .. + 127, words first_word .. + 15, zeros outside.
template <bool kVector>
__device__ __forceinline__ void load_stage(uint32_t* stage, const uint32_t* matrix, int64_t first_row, int64_t rows,
                                           int64_t first_word, int64_t words) {
  constexpr int kPiece = kVector ? 4 : 1;  // words
  constexpr int kPieces = kStageWords / kPiece;
#pragma unroll 4  // all 16 of the single words' addresses would not fit in registers
  for (int i = 0; i < kTile * kPieces / kThreads; ++i) {
    const int id = static_cast<int>(threadIdx.x) + i * kThreads;
    const int row = id / kPieces, word = id % kPieces * kPiece;
    const bool valid = first_row + row < rows && first_word + word < words;
    const uint32_t* source = valid ? matrix + (first_row + row) * words + first_word + word : matrix;
    copy_async<4 * kPiece>(stage + place(row, word / 4) + word % 4, source, valid);
  }
}

// kVector: rows are whole 16-byte chunks and start on 16 bytes.
template <bool kVector>
__global__ void __launch_bounds__(kThreads, 2) bit_matmul_bmma_kernel(const BitMatmul p) {
  const Tile tile = tile_at(blockIdx.x, ceil_div(p.rows_a, kTile), ceil_div(p.rows_b, kTile), 8);
  const int64_t first_a = tile.row * kTile, first_b = tile.column * kTile;
  const uint32_t* a = p.a + tile.member * p.rows_a * p.words;
  const uint32_t* b = p.b + tile.member * p.rows_b * p.words;
  uint32_t* shared = dynamic_shared();
  const int64_t steps = ceil_div(p.words, kStageWords);

  const auto load = [&](int64_t step) {
    if (step < steps) {
      uint32_t* stage = shared + step % kStages * (2 * kOperandWords);
      load_stage<kVector>(stage, a, first_a, p.rows_a, step * kStageWords, p.words);
      load_stage<kVector>(stage + kOperandWords, b, first_b, p.rows_b, step * kStageWords, p.words);
    }
    commit_copies();  // an empty group at the end keeps wait_copies' count right
  };
  for (int64_t step = 0; step < kStages - 1; ++step) load(step);

  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int warp_row = warp / 2 * 64, warp_column = warp % 2 * 64;
  int32_t counts[4][8][4] = {};
  for (int64_t step = 0; step < steps; ++step) {
    wait_copies<kStages - 2>();
    __syncthreads();  // the stage is there for all, and the one before it is read by none
    load(step + kStages - 1);
    const uint32_t* stage_a = shared + step % kStages * (2 * kOperandWords);
    const uint32_t* stage_b = stage_a + kOperandWords;
#pragma unroll
    for (int k = 0; k < kStageWords / 8; ++k) {
      uint32_t fragment_a[4][4], fragment_b[4][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // matrices: rows 0..7, rows 8..15, then both of the next 128 bits
        load_matrices(fragment_a[i], stage_a + place(warp_row + 16 * i + lane % 16, 2 * k + lane / 16));
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {  // matrices: columns 0..7 and their next 128 bits, then columns 8..15
        load_matrices(fragment_b[j],
                      stage_b + place(warp_column + 16 * j + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const uint32_t* pair = fragment_b[j / 2] + j % 2 * 2;
          and_popcount_mma(counts[i][j], fragment_a[i], pair[0], pair[1]);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t row = first_a + warp_row + 16 * i + lane / 4, column = first_b + warp_column;
    store_fragment(p, tile.member, row, column, counts[i], load_thresholds<8>(p, tile.member, row, column));
  }
}

}  // namespace

void bit_matmul_bmma(const BitMatmul& p, const Queue& queue) {
  const Shape shape = p.shape("bit_matmul_bmma");
  const DeviceGuard guard(queue.device, shape);
  const int64_t blocks = p.population * ceil_div(p.rows_a, kTile) * ceil_div(p.rows_b, kTile);
  const bool vector =
      p.words % 4 == 0 && (reinterpret_cast<uintptr_t>(p.a) | reinterpret_cast<uintptr_t>(p.b)) % 16 == 0;
  launch(shape, vector ? bit_matmul_bmma_kernel<true> : bit_matmul_bmma_kernel<false>, blocks, kThreads, kSharedBytes,
         queue, p);
}

}  // namespace fastbin::cuda
