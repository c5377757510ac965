// The step's constants and the choice of mask_grad_update's kernel.
#include "cuda/mask_grad_update.h"

namespace fastbin::cuda {
namespace {

// base^t by squaring; its relative error is below t * 2^-52.
__device__ double power(double base, int64_t t) {
  double result = 1.0;
  for (; t > 0; t >>= 1) {
    if ((t & 1) != 0) result *= base;
    base *= base;
  }
  return result;
}

// One block, so that nothing waits for the host: counts the step, derives its constants, clears the counters.
__global__ void begin_step_kernel(const MaskUpdate p) {
  const int64_t t = *p.step + 1;
  __syncthreads();
  if (threadIdx.x == 0) *p.step = t;
  for (int64_t member = threadIdx.x; member < p.population; member += blockDim.x) {
    const double* hyper = p.hyper + member * kHyperFields;
    const double lr = hyper[0], tau = hyper[1], c0 = hyper[3], c1 = hyper[4];
    double rate = lr, inv_sqrt_bias = 0.0;
    if (p.rule == Rule::kAdam) {
      const double decayed0 = power(c0, t), decayed1 = power(c1, t);
      rate = lr / (1.0 - decayed0);
      inv_sqrt_bias = 1.0 / sqrt(1.0 - decayed1);
    }
    const auto single = [](double value) { return static_cast<float>(value); };
    p.constants[member] = {single(1.0 / tau), single(hyper[2]), single(rate),
                           single(c0),        single(1.0 - c0), single(c1),
                           single(1.0 - c1),  single(hyper[5]), single(inv_sqrt_bias)};
    p.flips[member] = 0;
  }
}

}  // namespace

void mask_grad_update(const MaskUpdate& p, const Gradient& gradient, const Queue& queue) {
  const Shape shape = shape_of("mask_grad_update", p, gradient);
  const DeviceGuard guard(queue.device, shape);
  const int capable = capability(queue.device, shape);
  launch(shape, begin_step_kernel, 1, 128, 0, queue, p);
  if (capable == 90) {
    mask_grad_update_wgmma(p, gradient, queue);
  } else {
    mask_grad_update_mma(p, gradient, queue);
  }
}

}  // namespace fastbin::cuda
