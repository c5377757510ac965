// The AVX-512 intrinsics, or SIMDe's emulation of them (FASTBIN_EMULATE_AVX512, for tests on a CPU without AVX-512).
#pragma once

#if defined(FASTBIN_EMULATE_AVX512)
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#else
#include <immintrin.h>
#endif
