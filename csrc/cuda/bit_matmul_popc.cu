// bit_matmul by the popcount of CUDA cores, for devices whose tensor cores have no b1: compute capability 10.0 and
// later.
//
// A block makes 64 x 64 outputs; warp w takes rows 8 w .. 8 w + 7, lane l columns l and l + 32, so that a ballot is a
// word of the packed output. A word of both operands costs a warp 10 loads from shared memory and 16 popcounts, and a
// multiprocessor does 16 popcounts a cycle: 512 bit products.
#include "cuda/tile.h"

namespace fastbin::cuda {
namespace {

constexpr int kTile = 64;
constexpr int kThreads = 256;
constexpr int kWords = 32;          // of a row in a step
constexpr int kPitch = kWords + 1;  // lanes read a column of words: an odd pitch spreads them over the banks

__device__ __forceinline__ void load_step(uint32_t (&step)[kTile][kPitch], const uint32_t* matrix, int64_t first_row,
                                          int64_t rows, int64_t first_word, int64_t words) {
  const int64_t word = first_word + threadIdx.x % kWords;
  for (int row = static_cast<int>(threadIdx.x / kWords); row < kTile; row += kThreads / kWords) {
    const bool valid = first_row + row < rows && word < words;
    step[row][threadIdx.x % kWords] = valid ? matrix[(first_row + row) * words + word] : 0;
  }
}

// count > threshold, for an element inside the output; false outside of it.
__device__ __forceinline__ bool passes(const BitMatmul& p, int64_t member, int64_t row, int64_t column, int32_t count) {
  if (row >= p.rows_a || column >= p.rows_b) return false;
  return count > p.thresholds[member * p.member_stride + row * p.row_stride + column * p.column_stride];
}

__global__ void __launch_bounds__(kThreads) bit_matmul_popc_kernel(const BitMatmul p) {
  __shared__ uint32_t step_a[kTile][kPitch], step_b[kTile][kPitch];
  const Tile tile = tile_at(blockIdx.x, ceil_div(p.rows_a, kTile), ceil_div(p.rows_b, kTile), 8);
  const int64_t first_a = tile.row * kTile, first_b = tile.column * kTile;
  const uint32_t* a = p.a + tile.member * p.rows_a * p.words;
  const uint32_t* b = p.b + tile.member * p.rows_b * p.words;
  const int lane = static_cast<int>(threadIdx.x % 32), warp_row = static_cast<int>(threadIdx.x / 32 * 8);

  int32_t counts[8][2] = {};
  for (int64_t word = 0; word < p.words; word += kWords) {
    load_step(step_a, a, first_a, p.rows_a, word, p.words);
    load_step(step_b, b, first_b, p.rows_b, word, p.words);
    __syncthreads();
#pragma unroll 4
    for (int w = 0; w < kWords; ++w) {
      const uint32_t left = step_b[lane][w], right = step_b[lane + 32][w];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        counts[i][0] += __popc(step_a[warp_row + i][w] & left);
        counts[i][1] += __popc(step_a[warp_row + i][w] & right);
      }
    }
    __syncthreads();
  }

#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int64_t row = first_a + warp_row + i;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t column = first_b + 32 * half + lane;
      if (p.thresholds != nullptr) {
        const uint32_t word = __ballot_sync(0xffffffffu, passes(p, tile.member, row, column, counts[i][half]));
        const int64_t row_words = ceil_div(p.rows_b, 32), at = first_b / 32 + half;
        if (lane == 0 && row < p.rows_a && at < row_words) {
          p.y[(tile.member * p.rows_a + row) * row_words + at] = static_cast<int32_t>(word);
        }
      } else if (row < p.rows_a && column < p.rows_b) {
        p.y[(tile.member * p.rows_a + row) * p.rows_b + column] = counts[i][half];
      }
    }
  }
}

}  // namespace

void bit_matmul_popc(const BitMatmul& p, const Queue& queue) {
  const Shape shape = p.shape("bit_matmul_popc");
  const DeviceGuard guard(queue.device, shape);
  const int64_t blocks = p.population * ceil_div(p.rows_a, kTile) * ceil_div(p.rows_b, kTile);
  launch(shape, bit_matmul_popc_kernel, blocks, kThreads, 0, queue, p);
}

}  // namespace fastbin::cuda
