// The instruction sets that a CPU kernel may be built for, and the choice between them at run time.
#pragma once

namespace fastbin {

enum class Isa : int {
  kScalar = 0,  // baseline of the architecture (SSE2 on x86-64); built everywhere
  kAvx2 = 1,    // AVX2, FMA, BMI2, POPCNT
  kAvx512 = 2,  // AVX-512 F, BW, VL, DQ and VPOPCNTDQ (Ice Lake, Zen 4 and later)
};

const char* isa_name(Isa isa);

// Whether this CPU (and its operating system) runs the kernels of `isa`. Asks CPUID for the very features that the
// kernels use, not for a processor family.
bool isa_supported(Isa isa);

// The level in force: FASTBIN_ISA (scalar, avx2, avx512) if set, else the highest that this CPU supports. Read once.
// Throws std::invalid_argument for an unknown name and std::runtime_error for one that this CPU does not support.
Isa current_isa();

// Whether the level in force is kAvx512 and this CPU has AVX512_BF16 too (Cooper Lake, Sapphire Rapids, Zen 4).
bool isa_has_bf16();

// One kernel function for each level. `get` is what the drivers call.
template <typename Fn>
struct PerIsa {
  Fn scalar;
#if defined(__x86_64__)
  Fn avx2;
  Fn avx512;
#endif

  Fn get() const {
#if defined(__x86_64__)
    switch (current_isa()) {
      case Isa::kAvx512:
        return avx512;
      case Isa::kAvx2:
        return avx2;
      case Isa::kScalar:
        break;
    }
#endif
    return scalar;
  }
};

}  // namespace fastbin
