#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace fastbin {

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kScalar:
      break;
  }
  return "scalar";
}

bool isa_supported(Isa isa) {
  if (isa == Isa::kScalar) return true;
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
                    __builtin_cpu_supports("popcnt");
  if (isa == Isa::kAvx2) return avx2;
#if defined(FASTBIN_EMULATE_AVX512)
  return avx2;
#else
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vpopcntdq");
#endif
#else
  return false;
#endif
}

static Isa choose_isa() {
  constexpr Isa kLevels[] = {Isa::kAvx512, Isa::kAvx2, Isa::kScalar};
  const char* forced = std::getenv("FASTBIN_ISA");
  if (forced == nullptr || *forced == '\0') {
    for (Isa isa : kLevels) {
      // Emulation is for tests alone, so it is never chosen unasked.
#if defined(FASTBIN_EMULATE_AVX512)
      if (isa == Isa::kAvx512) continue;
#endif
      if (isa_supported(isa)) return isa;
    }
  }
  for (Isa isa : kLevels) {
    if (std::string(forced) != isa_name(isa)) continue;
    if (!isa_supported(isa)) {
      throw std::runtime_error("FASTBIN_ISA=" + std::string(forced) + ": this CPU does not support it");
    }
    return isa;
  }
  throw std::invalid_argument("FASTBIN_ISA=" + std::string(forced) + ": expected scalar, avx2 or avx512");
}

Isa current_isa() {
  static const Isa isa = choose_isa();
  return isa;
}

bool isa_has_bf16() {
  if (current_isa() != Isa::kAvx512) return false;
#if defined(FASTBIN_EMULATE_AVX512)
  return true;
#elif defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

}  // namespace fastbin
