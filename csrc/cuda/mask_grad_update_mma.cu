// mask_grad_update by mma.sync.m16n8k16, compute capability 8.0 and later.
#include "cuda/mask_grad_update.h"

namespace fastbin::cuda {
namespace {

// The sums of a warp's 64 x 32 edges of the tile.
template <Source kGySource, Source kXSource>
struct WarpSums {
  using Samples = Stage<kGySource, kXSource, kGySource == Source::kFloat32 ? 16 : 32>;

  __device__ __forceinline__ static void publish() {}

  static constexpr int kAhead = 1;  // the registers allow no more

  float sums[4][4][4] = {};

  __device__ __forceinline__ static int row() { return static_cast<int>(threadIdx.x / 128) * 64; }
  __device__ __forceinline__ static int col() { return static_cast<int>(threadIdx.x / 32 % 4) * 32; }

  __device__ __forceinline__ void add(const uint32_t* gy, const uint32_t* x) {
    const int matrix = static_cast<int>(threadIdx.x % 32 / 8), r = static_cast<int>(threadIdx.x % 8);
    const auto load_right = [&](uint32_t (&right)[2][4], int k, int b) {
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        const int at = Samples::at(k + matrix % 2 * 8 + r, col() / 8 + 2 * t + matrix / 2);
        load_matrices_transposed(right[t], x + b * Samples::kPlaneWords + at);
      }
    };
    const auto multiply = [&](float (&d)[4][4], int k, int a, int m, const uint32_t (&right)[2][4]) {
      uint32_t left[4];
      const int at = Samples::at(k + matrix / 2 * 8 + r, row() / 8 + 2 * m + matrix % 2);
      load_matrices_transposed(left, gy + a * Samples::kPlaneWords + at);
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        multiply_add<Samples::kHalf>(d[t], left, right[t / 2][t % 2 * 2], right[t / 2][t % 2 * 2 + 1]);
      }
    };
    if constexpr (!kSumsByStage<kGySource>) {
#pragma unroll 1  // for the registers
      for (int k = 0; k < Samples::kStep; k += 16) {
        uint32_t right[2][4];
        load_right(right, k, 0);
#pragma unroll
        for (int m = 0; m < 4; ++m) multiply(sums[m], k, 0, m, right);
      }
    } else {
      static_assert(Samples::kStep == 16);
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        float stage[4][4] = {};
#pragma unroll 1
        for (int b = Samples::kXPlanes - 1; b >= 0; --b) {
          uint32_t right[2][4];
          load_right(right, 0, b);
#pragma unroll 1
          for (int a = Samples::kGyPlanes - 1 - b; a >= 0; --a) multiply(stage, 0, a, m, right);
        }
#pragma unroll
        for (int t = 0; t < 4; ++t) {
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[m][t][i] += stage[t][i];
        }
      }
    }
  }

  __device__ __forceinline__ void store(float* tile) const {
#pragma unroll
    for (int m = 0; m < 4; ++m) store_sums(tile, row() + 16 * m, col(), sums[m]);
  }
};

template <Source kGy, Source kX>
__global__ void __launch_bounds__(kThreads, kBlocks)
    mask_grad_update_mma_kernel(const MaskUpdate p, const Gradient gradient, const int parts) {
  update_tile<WarpSums<kGy, kX>>(p, gradient, parts);
}

struct Kernels {
  template <Source kGy, Source kX>
  static auto of() {
    return mask_grad_update_mma_kernel<kGy, kX>;
  }
};

}  // namespace

void mask_grad_update_mma(const MaskUpdate& p, const Gradient& gradient, const Queue& queue) {
  launch_update<Kernels>("mask_grad_update_mma", p, gradient, queue);
}

}  // namespace fastbin::cuda
