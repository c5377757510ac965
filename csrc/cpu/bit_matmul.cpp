#include "cpu/bit_matmul.h"

#include <algorithm>
#include <memory>

#include "cpu/bit_matmul_kernel.h"
#include "cpu/isa.h"
#include "cpu/memory.h"
#include "cpu/parallel.h"

namespace fastbin {
namespace {

#if defined(__x86_64__)
constexpr PerIsa<const BitMatmulKernels*> kKernels{&scalar::kBitMatmul, &avx2::kBitMatmul, &avx512::kBitMatmul};
#else
constexpr PerIsa<const BitMatmulKernels*> kKernels{&scalar::kBitMatmul};
#endif

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Packing b costs about as much as its dot products with a few rows of a, and a vector has 32 lanes (64 for AVX-512) to
// fill. Measured on AVX2: 1024 x 1024 bits of b with 11 rows of a took 64 us as dot products, with 12 rows 54 us by
// lookup; 4096 rows of a with 23 rows of b 292 us, with 24 rows 265 us.
bool lookup_pays(const BitLookupKernel& lookup, int64_t m, int64_t n, int64_t words) {
  return lookup.panel != 0 && m >= 12 && n >= 24 && words >= 4;
}

struct Product {
  const uint32_t* a;
  const uint32_t* b;
  int32_t* y;
  int64_t population, m, n, words;
};

void by_dots(const Product& s, BitDotsKernel dots, int threads) {
  // 64 rows of either are 2 * 16 KiB at 2048 columns. Below some 10 us of work (2^16 words) a thread does not pay.
  constexpr int64_t kRows = 64;
  const int64_t down = ceil_div(s.m, kRows), across = ceil_div(s.n, kRows), tasks = s.population * down * across;
  const int64_t work = s.population * s.m * s.n * (s.words + 1);
  parallel_for(work < (1 << 16) ? 1 : threads, tasks, [&](int64_t task) {
    const int64_t p = task / (down * across), i = task / across % down * kRows, j = task % across * kRows;
    dots(s.a + (p * s.m + i) * s.words, std::min(kRows, s.m - i), s.b + (p * s.n + j) * s.words,
         std::min(kRows, s.n - j), s.words, s.y + (p * s.m + i) * s.n + j, s.n);
  });
}

void by_lookup(const Product& s, const BitLookupKernel& lookup, int threads) {
  const int64_t steps = lookup_steps(s.words), panels = ceil_div(s.n, lookup.panel);
  const int64_t code_bytes = ceil_div(s.m, 2) * steps, panel_bytes = steps * lookup.panel;
  if (s.population * s.m * s.n * s.words < (1 << 20)) threads = 1;
  // Fewer rows to a task where there would be too few tasks to share out evenly.
  int64_t rows = kLookupRows;
  while (rows > 16 && s.population * panels * ceil_div(s.m, rows) < 4 * threads) rows /= 2;
  const int64_t chunks = ceil_div(s.m, rows);
  // As many matrices at a time as fit 64 MiB of packed operands, at least one.
  const int64_t bytes = code_bytes + panels * panel_bytes;
  const int64_t group = std::min(s.population, std::max<int64_t>(1, (int64_t{64} << 20) / bytes));

  constexpr int64_t kLine = 64;
  std::unique_ptr<uint8_t[]> scratch(new uint8_t[static_cast<size_t>(group * bytes + kLine)]);
  uint8_t* const nibbles = scratch.get() + (kLine - reinterpret_cast<std::uintptr_t>(scratch.get()) % kLine) % kLine;
  uint8_t* const codes = nibbles + group * panels * panel_bytes;

  for (int64_t base = 0; base < s.population; base += group) {
    const int64_t count = std::min(group, s.population - base);
    parallel_for(threads, count * (panels + chunks), [&](int64_t task) {
      const int64_t p = task / (panels + chunks), t = task % (panels + chunks);
      if (t < panels) {
        const int64_t j = t * lookup.panel;
        lookup.pack_panel(s.b + ((base + p) * s.n + j) * s.words, std::min<int64_t>(lookup.panel, s.n - j), s.words,
                          nibbles + (p * panels + t) * panel_bytes);
      } else {
        const int64_t i = (t - panels) * rows;
        lookup.pack_pairs(s.a + ((base + p) * s.m + i) * s.words, std::min(rows, s.m - i), s.words,
                          codes + p * code_bytes + i / 2 * steps);
      }
    });
    parallel_for(threads, count * chunks * panels, [&](int64_t task) {
      const int64_t p = task / (chunks * panels), i = task / panels % chunks * rows, t = task % panels;
      const int64_t j = t * lookup.panel;
      lookup.tile(codes + p * code_bytes + i / 2 * steps, std::min(rows, s.m - i),
                  nibbles + (p * panels + t) * panel_bytes, std::min<int64_t>(lookup.panel, s.n - j), s.words,
                  s.y + ((base + p) * s.m + i) * s.n + j, s.n);
    });
  }
}

}  // namespace

void bit_matmul(const uint32_t* a, const uint32_t* b, int32_t* y, int64_t population, int64_t m, int64_t n,
                int64_t words, int threads) {
  const BitMatmulKernels& kernels = *kKernels.get();
  const Product product{a, b, y, population, m, n, words};
  if (population == 0 || m == 0 || n == 0) return;
  expect_writes(y, population * m * n * static_cast<int64_t>(sizeof(int32_t)));
  if (lookup_pays(kernels.lookup, m, n, words)) {
    by_lookup(product, kernels.lookup, threads);
  } else {
    by_dots(product, kernels.dots, threads);
  }
}

}  // namespace fastbin
