#include "cpu/bit_linear.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <utility>

#include "cpu/bit_linear_isa.h"
#include "cpu/bits.h"
#include "cpu/memory.h"
#include "cpu/parallel.h"

namespace fastbin {
namespace {

#if defined(__x86_64__)
#define FASTBIN_PER_ISA(Fn, name) (PerIsa<Fn>{scalar::name, avx2::name, avx512::name}.get())
#else
#define FASTBIN_PER_ISA(Fn, name) (PerIsa<Fn>{scalar::name}.get())
#endif

constexpr std::align_val_t kAlignment{64};

struct Free {
  void operator()(void* p) const { ::operator delete(p, kAlignment); }
};
using Memory = std::unique_ptr<void, Free>;

Memory allocate(int64_t bytes) { return Memory(::operator new(static_cast<size_t>(bytes), kAlignment)); }

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One product with w or its transpose: `inputs` and `outputs` are cols and rows, or rows and cols.
template <typename X, typename Y>
struct Product {
  const X* x;
  const uint32_t* w;
  Y* y;
  int64_t population, batch, rows, cols;
  bool transposed;
  int threads;

  int64_t inputs() const { return transposed ? rows : cols; }
  int64_t outputs() const { return transposed ? cols : rows; }
  const uint32_t* member_w(int64_t p) const { return w + p * rows * words_for(cols); }

  // Runs item(i, scratch) for all i, each worker with scratch of its own for `block` outputs.
  template <typename Item>
  void for_each_item(int64_t items, int64_t block, const Item& item) const {
    const int64_t workers = std::min<int64_t>(threads, items);
    const int64_t bytes = kTableBytes + kRowBytes * block;
    const Memory scratch = allocate(workers * bytes);
    std::atomic<int64_t> next{0};
    parallel_for(threads, workers, [&](int64_t worker) {
      for (int64_t i = next++; i < items; i = next++) item(i, static_cast<char*>(scratch.get()) + worker * bytes);
    });
  }

  // Outputs to a block: at most `most`, and few enough for `pieces` blocks unless that is below `least`; all blocks
  // alike. A multiple of 64, so that blocks of columns begin at whole words.
  int64_t block_size(int64_t least, int64_t most, int64_t pieces) const {
    const int64_t blocks = ceil_div(outputs(), std::clamp(ceil_div(outputs(), pieces), least, most));
    return ceil_div(ceil_div(outputs(), blocks), 64) * 64;
  }

  // Few samples: straight from the matrix, outputs cut among the threads. Blocks of 2048 keep the lines of words that a
  // kernel comes back to (64 bytes an output) in L2.
  void run_small() const {
    using Fn = SmallFn<X, Y>;
    const Fn kernel = transposed ? FASTBIN_PER_ISA(Fn, bit_linear_small_t) : FASTBIN_PER_ISA(Fn, bit_linear_small);
    const int64_t block = block_size(128, 2048, ceil_div(threads, population));
    const int64_t blocks = ceil_div(outputs(), block);
    for_each_item(population * blocks, block, [&](int64_t item, void* scratch) {
      const int64_t p = item / blocks;
      const int64_t first = item % blocks * block;
      kernel(x + p * batch * inputs(), member_w(p), y + p * batch * outputs(), batch, rows, cols, first,
             std::min(block, outputs() - first), scratch);
    });
  }

  // Many samples: the matrix is repacked once, then blocks of samples x outputs are independent.
  void run_large() const {
    const BitLinearBlocks kernels = FASTBIN_PER_ISA(BitLinearBlocks (*)(), bit_linear_blocks)();
    const RepackFn repack = transposed ? kernels.repack_t : kernels.repack;
    const int64_t member_bytes = ceil_div(inputs(), kernels.group_inputs) * outputs() * kernels.code_bytes;
    const Memory memory = allocate(population * member_bytes);
    char* const codes = static_cast<char*>(memory.get());

    const auto [kernel, samples] = block_kernel(kernels);
    const int64_t sample_blocks = ceil_div(batch, samples);
    const int64_t block = block_size(256, 2048, ceil_div(2 * threads, population * sample_blocks));
    const int64_t blocks = ceil_div(outputs(), block);
    const auto repack_block = [&, block = block](int64_t p, int64_t b) {
      const int64_t first = b * block;
      repack(member_w(p), rows, cols, first, std::min(block, outputs() - first), codes + p * member_bytes);
    };
    // A single block of samples repacks what it is about to read, and spares a fork.
    if (sample_blocks > 1) {
      parallel_for(threads, population * blocks, [&](int64_t item) { repack_block(item / blocks, item % blocks); });
    }
    for_each_item(population * sample_blocks * blocks, block,
                  [&, kernel = kernel, samples = samples](int64_t item, void* scratch) {
                    const int64_t p = item / (sample_blocks * blocks);
                    const int64_t s = item / blocks % sample_blocks * samples;
                    const int64_t first = item % blocks * block;
                    if (sample_blocks == 1) repack_block(p, item % blocks);
                    kernel(x + (p * batch + s) * inputs(), std::min(samples, batch - s), inputs(),
                           codes + p * member_bytes + first * kernels.code_bytes, outputs(),
                           std::min(block, outputs() - first), y + (p * batch + s) * outputs() + first, outputs(),
                           scratch);
                  });
  }

  static std::pair<BlockFn<X, Y>, int64_t> block_kernel(const BitLinearBlocks& kernels) {
    if constexpr (sizeof(X) == 1) {
      return {kernels.i8, kernels.samples_i8};
    } else {
      return {kernels.f32, kernels.samples_f32};
    }
  }

  void run() {
    if (population * batch * outputs() == 0) return;
    expect_writes(y, population * batch * outputs() * static_cast<int64_t>(sizeof(Y)));
    // A fork costs a few microseconds, in which one core does some 2^18 products.
    if (population * batch * rows * cols < (int64_t{1} << 18)) threads = 1;
    if (batch <= FASTBIN_PER_ISA(int64_t (*)(), bit_linear_small_batch)()) {
      run_small();
    } else {
      run_large();
    }
  }
};

}  // namespace

void bit_linear_f32(const float* x, const uint32_t* w, float* y, int64_t population, int64_t batch, int64_t rows,
                    int64_t cols, int threads) {
  Product<float, float>{x, w, y, population, batch, rows, cols, false, threads}.run();
}

void bit_linear_i8(const int8_t* x, const uint32_t* w, int32_t* y, int64_t population, int64_t batch, int64_t rows,
                   int64_t cols, int threads) {
  Product<int8_t, int32_t>{x, w, y, population, batch, rows, cols, false, threads}.run();
}

void bit_linear_t_f32(const float* g, const uint32_t* w, float* y, int64_t population, int64_t batch, int64_t rows,
                      int64_t cols, int threads) {
  Product<float, float>{g, w, y, population, batch, rows, cols, true, threads}.run();
}

void bit_linear_t_i8(const int8_t* g, const uint32_t* w, int32_t* y, int64_t population, int64_t batch, int64_t rows,
                     int64_t cols, int threads) {
  Product<int8_t, int32_t>{g, w, y, population, batch, rows, cols, true, threads}.run();
}

}  // namespace fastbin
