// mask_grad_update by wgmma.m64n128k16 (m64n64k16 for float32), compute capability 9.0: no fragments in registers, and
// twice the rate.
#include "cuda/mask_grad_update.h"
#include "cuda/ptx_wgmma.h"

namespace fastbin::cuda {
namespace {

// The sums of a warpgroup's 64 x 128 edges of the tile.
template <Source kGySource, Source kXSource>
struct GroupSums {
  using Samples = Stage<kGySource, kXSource, kGySource == Source::kFloat32 ? 16 : 64>;

  __device__ __forceinline__ static void publish() { fence_shared(); }

  static constexpr int kAhead = 2;

  float sums[16][4] = {};

  // Describes a plane, from a sample on that is a multiple of 8, to wgmma: its address / 16 in bits 0..13, the bytes /
  // 16 from one panel of 64 columns to the next in bits 16..29 and from eight samples to the next in bits 32..45, and 1
  // for the 128-byte swizzle in bits 62..63.
  __device__ __forceinline__ static uint64_t describe(const uint32_t* plane) {
    return uint64_t{1} << 62 | uint64_t{1024 / 16} << 32 | uint64_t{4 * Samples::kPanelWords / 16} << 16 |
           (shared_address(plane) & 0x3ffffu) / 16;
  }

  // d = (accumulate ? d : 0) + the products of the stage's samples, of this warpgroup's rows and of 8 kTiles columns
  // from where x starts.
  template <int kTiles>
  __device__ __forceinline__ static void multiply(float (&d)[kTiles][4], const uint32_t* gy, const uint32_t* x,
                                                  bool accumulate) {
    begin_products();
#pragma unroll
    for (int k = 0; k < Samples::kStep; k += 16) {
#pragma unroll
      for (int b = Samples::kXPlanes - 1; b >= 0; --b) {
#pragma unroll
        for (int a = Samples::kGyPlanes - 1 - b; a >= 0; --a) {
          multiply_wgmma_columns<Samples::kHalf>(d, describe(gy + a * Samples::kPlaneWords + Samples::at(k, 0)),
                                                 describe(x + b * Samples::kPlaneWords + Samples::at(k, 0)),
                                                 accumulate);
          accumulate = true;
        }
      }
    }
    commit_products();
    wait_products<0>();
  }

  __device__ __forceinline__ void add(const uint32_t* gy, const uint32_t* x) {
    gy += threadIdx.x / 128 * Samples::kPanelWords;
    if constexpr (!kSumsByStage<kGySource>) {
      multiply(sums, gy, x, true);
    } else {
#pragma unroll
      for (int panel = 0; panel < 2; ++panel) {  // one after the other, for the registers
        float stage[8][4];
        multiply(stage, gy, x + panel * Samples::kPanelWords, false);
#pragma unroll
        for (int t = 0; t < 8; ++t) {
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[8 * panel + t][i] += stage[t][i];
        }
      }
    }
  }

  __device__ __forceinline__ void store(float* tile) const {
    store_sums(tile, static_cast<int>(threadIdx.x / 32) * 16, 0, sums);
  }
};

template <Source kGy, Source kX>
__global__ void __launch_bounds__(kThreads, kBlocks)
    mask_grad_update_wgmma_kernel(const MaskUpdate p, const Gradient gradient, const int parts) {
// Compiled for other architectures it would not assemble; mask_grad_update never launches it there.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  update_tile<GroupSums<kGy, kX>>(p, gradient, parts);
#endif
}

struct Kernels {
  template <Source kGy, Source kX>
  static auto of() {
    return mask_grad_update_wgmma_kernel<kGy, kX>;
  }
};

}  // namespace

void mask_grad_update_wgmma(const MaskUpdate& p, const Gradient& gradient, const Queue& queue) {
  launch_update<Kernels>("mask_grad_update_wgmma", p, gradient, queue);
}

}  // namespace fastbin::cuda
