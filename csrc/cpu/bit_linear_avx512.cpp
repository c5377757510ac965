#define FASTBIN_ISA_NAMESPACE avx512
#include "cpu/bit_linear_kernel.h"
