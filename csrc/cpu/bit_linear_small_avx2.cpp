#define FASTBIN_ISA_NAMESPACE avx2
#include "cpu/bit_linear_small_kernel.h"
