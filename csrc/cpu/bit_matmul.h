// The product of two bit matrices.
#pragma once

#include <cstdint>

namespace fastbin {

// y[p][i][j] = the number of bits set in a[p][i] & b[p][j]: a [population, m, words], b [population, n, words].
void bit_matmul(const uint32_t* a, const uint32_t* b, int32_t* y, int64_t population, int64_t m, int64_t n,
                int64_t words, int threads);

}  // namespace fastbin
