// y = x w^T for two samples and three rows of bits by the installed library, and the common ones of the rows.
#include <fastbin/bit_linear.h>
#include <fastbin/bit_matmul.h>
#include <fastbin/bits.h>

#include <cstdio>

int main() {
  const float x[2][40] = {{1, 2, 4}, {0.5f, 0, -3}}, bits[3][40] = {{1, 0, 1}, {0, 1, 1}, {}};
  uint32_t w[3 * fastbin::words_for(40)];
  float y[2][3];
  int32_t common[3][3];
  if (fastbin::pack_f32(bits[0], w, 3, 40, 1) >= 0) return 1;
  fastbin::bit_linear_f32(x[0], w, y[0], 1, 2, 3, 40, 2);
  fastbin::bit_matmul(w, w, common[0], 1, 3, 3, fastbin::words_for(40), 2);
  for (const auto& row : y) std::printf("%g %g %g\n", row[0], row[1], row[2]);
  for (const auto& row : common) std::printf("%d %d %d\n", row[0], row[1], row[2]);
}
