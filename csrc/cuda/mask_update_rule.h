// The arithmetic of the score rules, bit for bit that of fastbin/reference.py: no contraction, quotients and roots
// rounded to nearest.
//
// At 24 bytes an edge (Adam) an H100 has 0.93 edges a cycle and multiprocessor to update, some 130 instructions each if
// nothing else ran. CUDA's own division and square root test every operand and branch; the ones here know their
// operands' range, or test four edges at a time, and have the same fast path.
#pragma once

#include "cuda/mask_update.h"
#include "cuda/ptx.h"

namespace fastbin::cuda {

__device__ __forceinline__ float mul(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }

// a / b rounded to nearest, if 1 / b, the quotient and its remainder a - b * quotient are normal numbers or nearly so.
__device__ __forceinline__ float divide(float a, float b) {
  float y = approximate_reciprocal(b);
  y = fmaf(fmaf(-b, y, 1.0f), y, y);
  float quotient = mul(a, y);
  quotient = fmaf(fmaf(-b, quotient, a), y, quotient);
  return fmaf(fmaf(-b, quotient, a), y, quotient);
}

// The square root of v >= 0 rounded to nearest, as root * unit: v below 2^-60, whose remainder would be denormal, is
// multiplied by 2^100 first.
struct Root {
  float root;
  bool small;  // root has to be multiplied by 2^-50
};
__device__ __forceinline__ Root square_root(float v) {
  const bool small = v < 0x1p-60f;
  const float w = small ? mul(v, 0x1p100f) : v;
  const float y = fminf(approximate_inverse_root(w), 0x1p64f);  // infinite for 0
  const float first = mul(w, y);
  const float root = fmaf(fmaf(-first, first, w), mul(y, 0.5f), first);
  return {v < __int_as_float(0x7f800000) ? root : v, small};
}

// exp(-a) = mantissa * scale for a >= 0; scale is a power of two.
struct Exponential {
  float mantissa, scale;
  __device__ __forceinline__ float value() const { return mul(mantissa, scale); }
};
__device__ __forceinline__ Exponential exp_neg(float a) {
  const float t = fminf(a, 87.0f);
  const float shifted = add(mul(t, 1.44269504f), 12582912.0f);
  const float n = add(shifted, -12582912.0f);
  float r = fmaf(n, 0.693145751953125f, -t);  // the product is exact
  r = add(r, mul(n, 1.42860677e-6f));
  float p = add(mul(r, static_cast<float>(1.0 / 720)), static_cast<float>(1.0 / 120));
  p = add(mul(p, r), static_cast<float>(1.0 / 24));
  p = add(mul(p, r), static_cast<float>(1.0 / 6));
  p = add(mul(p, r), 0.5f);
  p = add(mul(p, r), 1.0f);
  p = add(mul(p, r), 1.0f);
  // n is in the low bits of `shifted`.
  return {p, __uint_as_float((127u << 23) - (__float_as_uint(shifted) << 23))};
}

// Philox 4x32-10 (Salmon et al. 2011): four random words of a block of the member's stream.
__device__ __forceinline__ uint4 philox(uint64_t seed, uint64_t step, uint64_t block) {
  uint32_t x0 = static_cast<uint32_t>(block), x1 = static_cast<uint32_t>(block >> 32);
  uint32_t x2 = static_cast<uint32_t>(step), x3 = static_cast<uint32_t>(step >> 32);
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * x0, b = uint64_t{0xCD9E8D57u} * x2;
    x0 = static_cast<uint32_t>(b >> 32) ^ x1 ^ key0;
    x2 = static_cast<uint32_t>(a >> 32) ^ x3 ^ key1;
    x1 = static_cast<uint32_t>(b), x3 = static_cast<uint32_t>(a);
    key0 += 0x9E3779B9u, key1 += 0xBB67AE85u;
  }
  return make_uint4(x0, x1, x2, x3);
}

// Four edges.
struct Edges {
  float scores[4], first[4], second[4];
};

// Moves them, and returns their new bits, given the old ones (for kBop) and random words (for kSample).
template <Rule kRule, bool kSample>
__device__ __forceinline__ uint32_t move(Edges& e, const float (&grad)[4], uint32_t old, const uint32_t (&random)[4],
                                         const UpdateConstants& c) {
  uint32_t bits = 0;
  if constexpr (kRule == Rule::kBop) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      e.first[i] = add(mul(c.rest0, e.first[i]), mul(c.c0, grad[i]));
      const bool one = (old >> i & 1) != 0;
      const bool flip = (one ? e.first[i] : -e.first[i]) > c.c1;
      bits |= static_cast<uint32_t>(one != flip) << i;
    }
    return bits;
  } else {
    float step[4], numerator[4], denominator[4];
    float least = 1.0f, lowest = 1.0f, sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Exponential power = exp_neg(fabsf(mul(e.scores[i], c.inv_tau)));
      const float d = add(1.0f, power.value());
      // In [0.17, 1.42] before it is scaled, and still normal afterwards: exp(-87) is.
      const float slope = mul(divide(power.mantissa, mul(d, d)), power.scale);
      const float g = mul(grad[i], mul(slope, c.inv_tau));
      if constexpr (kRule == Rule::kSgd) {
        e.first[i] = add(mul(c.c0, e.first[i]), g);
        step[i] = mul(c.rate, e.first[i]);
      } else {
        e.first[i] = add(mul(c.c0, e.first[i]), mul(c.rest0, g));
        e.second[i] = add(mul(c.c1, e.second[i]), mul(c.rest1, mul(g, g)));
        const Root root = square_root(e.second[i]);
        numerator[i] = mul(c.rate, e.first[i]);
        denominator[i] = add(mul(root.root, root.small ? mul(c.inv_sqrt_bias, 0x1p-50f) : c.inv_sqrt_bias), c.c2);
        step[i] = divide(numerator[i], denominator[i]);
        least = fminf(least, denominator[i]);
        lowest = fminf(lowest, fmaxf(fabsf(e.scores[i]), fabsf(step[i])));
        sum = add(sum, fabsf(step[i]));
      }
    }
    if constexpr (kRule == Rule::kAdam) {
      // `divide` is right for a denominator of at least 2^-30 and a quotient from 2^-70 to 2^100; a smaller one does
      // not move a score of 2^-40.
      if (!(least >= 0x1p-30f && lowest >= 0x1p-40f && sum <= 0x1p100f)) {
#pragma unroll
        for (int i = 0; i < 4; ++i) step[i] = __fdiv_rn(numerator[i], denominator[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float moved = add(e.scores[i], -step[i]);
      e.scores[i] = moved < -c.clip ? -c.clip : moved > c.clip ? c.clip : moved;  // NaN stays
      bool one = e.scores[i] > 0.0f;
      if constexpr (kSample) {
        const float z = mul(e.scores[i], c.inv_tau);
        const Exponential power = exp_neg(fabsf(z));
        const float quotient = divide(z > 0.0f ? 1.0f : power.mantissa, add(1.0f, power.value()));
        const float probability = z > 0.0f ? quotient : mul(quotient, power.scale);
        one = mul(static_cast<float>(random[i] >> 8), 0x1p-24f) < probability;
      }
      bits |= static_cast<uint32_t>(one) << i;
    }
    return bits;
  }
}

}  // namespace fastbin::cuda
