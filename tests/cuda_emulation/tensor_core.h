// How tensor cores add products of float16 and bfloat16 to a float32, which NVIDIA does not document: the model of Xie
// et al., "MMA-Sim" (arXiv 2511.10909), whose results were the hardware's bit for bit on cards from the V100 to the
// B200. Products are exact. They and the sum so far are cut off, toward zero, F bits below the largest of them, added
// without error, and cut off to a float32. A number's size is its exponent: a product counts as large as its factors'
// exponents say, and a denormal as large as the least normal number.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cuda_runtime.h"

namespace emulation {

struct Factor {
  double value;
  int exponent;  // of a product's size
};

// The exponent of a number whose format has none below `least`.
inline int exponent_of(double value, int least) {
  uint64_t bits;
  std::memcpy(&bits, &value, 8);
  return std::max(static_cast<int>(bits >> 52 & 0x7ff) - 1023, least);
}

inline double power_of_two(int exponent) {
  const uint64_t bits = static_cast<uint64_t>(exponent + 1023) << 52;
  double power;
  std::memcpy(&power, &bits, 8);
  return power;
}

inline Factor factor_of_float16(float value) { return {value, exponent_of(value, -14)}; }
inline Factor factor_of_bfloat16(float value) { return {value, exponent_of(value, -126)}; }

inline float cut_off(double value) {
  const auto nearest = static_cast<float>(value);
  return std::abs(static_cast<double>(nearest)) > std::abs(value) ? std::nextafter(nearest, 0.0f) : nearest;
}

// sum + a · b, as the emulated device adds it: eight products at a time before capability 9.0. Without sanitizers,
// which are for the kernels, as most of the emulation's time goes here.
__attribute__((no_sanitize("address", "undefined"))) inline float add_products(float sum,
                                                                               const std::array<Factor, 16>& a,
                                                                               const std::array<Factor, 16>& b) {
  const bool old = emulated_capability < 90;
  const int fraction = old ? 24 : 25;
  const unsigned at_once = old ? 8 : 16;
  for (unsigned first = 0; first < 16; first += at_once) {
    double plain = sum;
    int largest = sum == 0 ? -252 : exponent_of(sum, -126);  // nothing is smaller than two least numbers' product
    for (unsigned k = first; k < first + at_once; ++k) {
      const double product = a[k].value * b[k].value;  // exact
      plain += product;
      if (product != 0) largest = std::max(largest, a[k].exponent + b[k].exponent);
    }
    if (!std::isfinite(plain)) {
      sum = static_cast<float>(plain);
      continue;
    }
    const double scale = power_of_two(fraction - largest);
    auto units = static_cast<int64_t>(sum * scale);  // below 2^27, as are the others
    for (unsigned k = first; k < first + at_once; ++k) units += static_cast<int64_t>(a[k].value * b[k].value * scale);
    sum = cut_off(static_cast<double>(units) * power_of_two(largest - fraction));
  }
  return sum;
}

}  // namespace emulation
