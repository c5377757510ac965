// The choice of bit_matmul's kernel.
#include "cuda/bit_matmul.h"

#include "cuda/tile.h"

namespace fastbin::cuda {

void bit_matmul(const BitMatmul& p, const Queue& queue) {
  if (capability(queue.device, p.shape("bit_matmul")) >= 100) {
    bit_matmul_popc(p, queue);
  } else {
    bit_matmul_bmma(p, queue);
  }
}

}  // namespace fastbin::cuda
