// The choice of bit_matmul's kernel.
#include "cuda/bit_matmul.h"
#include "cuda/tile.h"

namespace fastbin::cuda {

void bit_matmul(const BitMatmul& p, const Queue& queue) {
  const Shape shape = p.shape("bit_matmul");
  const int capable = capability(queue.device, shape);
  // Tiles of wgmma's cluster of two blocks; where they would leave more than half of the multiprocessors idle, bmma's
  // smaller tiles serve.
  const int64_t clusters = p.population * ceil_div(p.rows_a, 256) * ceil_div(p.rows_b, 256);
  if (capable >= 100) {
    bit_matmul_popc(p, queue);
  } else if (capable == 90 && wgmma_fits(p) &&
             4 * clusters >= attribute(cudaDevAttrMultiProcessorCount, queue.device, shape)) {
    bit_matmul_wgmma(p, queue);
  } else {
    bit_matmul_bmma(p, queue);
  }
}

}  // namespace fastbin::cuda
