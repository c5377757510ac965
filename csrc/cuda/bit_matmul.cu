// The choice of bit_matmul's kernel.
#include "cuda/bit_matmul.h"

namespace fastbin::cuda {

void bit_matmul(const BitMatmul& p, const Queue& queue) {
  const Shape shape = p.shape("bit_matmul");
  const int capable = capability(queue.device, shape);
  // On an H100 wgmma was the faster from rows of 1024 bits on, which are one of its stages, at any number of outputs.
  if (capable >= 100) {
    bit_matmul_popc(p, queue);
  } else if (capable == 90 && p.words >= 32 && wgmma_fits(p)) {
    bit_matmul_wgmma(p, queue);
  } else {
    bit_matmul_bmma(p, queue);
  }
}

}  // namespace fastbin::cuda
