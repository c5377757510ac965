#define FASTBIN_ISA_NAMESPACE scalar
#include "cpu/bit_linear_small_kernel.h"
