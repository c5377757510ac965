#define FASTBIN_ISA_NAMESPACE avx512
#include "cpu/bit_linear_small_kernel.h"
