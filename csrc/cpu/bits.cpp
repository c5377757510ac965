#include "cpu/bits.h"

#include <algorithm>
#include <atomic>

#include "cpu/bits_kernel.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace fastbin {
namespace {

#if defined(__x86_64__)
constexpr PerIsa<const BitsKernels*> kKernels{&scalar::kBits, &avx2::kBits, &avx512::kBits};
#else
constexpr PerIsa<const BitsKernels*> kKernels{&scalar::kBits};
#endif

// Elements in a task: 64 Ki floats are 256 KiB, some 10 us of memory traffic. What fits into two tasks is not worth
// waking a thread for.
constexpr int64_t kTaskElements = 1 << 16;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls fn(r, c, rows, cols) for pieces of whole rows, or of whole words of one row, of about kTaskElements elements.
template <typename Fn>
void for_pieces(int64_t rows, int64_t cols, int threads, const Fn& fn) {
  if (rows == 0 || cols == 0) return;
  if (cols % kWordBits == 0) {  // no padding: one long row
    cols *= rows;
    rows = 1;
  }
  const int64_t piece_cols = std::min(cols, kTaskElements);
  const int64_t piece_rows = piece_cols < cols ? 1 : std::max<int64_t>(1, kTaskElements / cols);
  const int64_t across = ceil_div(cols, piece_cols), tasks = ceil_div(rows, piece_rows) * across;
  parallel_for(tasks <= 2 ? 1 : threads, tasks, [&](int64_t task) {
    const int64_t r = task / across * piece_rows, c = task % across * piece_cols;
    fn(r * cols + c, r * words_for(cols) + c / kWordBits, std::min(piece_rows, rows - r),
       std::min(piece_cols, cols - c));
  });
}

// Packs by pieces. A piece with an illegal value is searched again, one value at a time, for the first of them.
template <typename T, typename Pack, typename Legal>
int64_t pack(const T* x, uint32_t* words, int64_t rows, int64_t cols, int threads, const Pack& pack_piece,
             const Legal& legal) {
  const int64_t none = rows * cols;
  std::atomic<int64_t> first{none};
  for_pieces(rows, cols, threads, [&](int64_t element, int64_t word, int64_t piece_rows, int64_t piece_cols) {
    if (pack_piece(x + element, words + word, piece_rows, piece_cols)) return;
    const int64_t found = std::find_if_not(x + element, x + element + piece_rows * piece_cols, legal) - x;
    int64_t seen = first.load();
    while (found < seen && !first.compare_exchange_weak(seen, found)) {
    }
  });
  return first == none ? -1 : first.load();
}

template <typename T>
bool is_binary(T value) {
  return value == T{0} || value == T{1};
}

}  // namespace

int64_t pack_threshold_f32(const float* x, float threshold, uint32_t* words, int64_t rows, int64_t cols, int threads) {
  const auto kernel = kKernels.get()->pack_threshold_f32;
  return pack(
      x, words, rows, cols, threads,
      [=](const float* from, uint32_t* to, int64_t r, int64_t c) { return kernel(from, threshold, to, r, c); },
      [](float value) { return value == value; });
}

int64_t pack_f32(const float* x, uint32_t* words, int64_t rows, int64_t cols, int threads) {
  return pack(x, words, rows, cols, threads, kKernels.get()->pack_f32, is_binary<float>);
}

int64_t pack_u8(const uint8_t* x, uint32_t* words, int64_t rows, int64_t cols, int threads) {
  return pack(x, words, rows, cols, threads, kKernels.get()->pack_u8, is_binary<uint8_t>);
}

void unpack_f32(const uint32_t* words, float* y, int64_t rows, int64_t cols, int threads) {
  const auto kernel = kKernels.get()->unpack_f32;
  for_pieces(rows, cols, threads, [&](int64_t element, int64_t word, int64_t piece_rows, int64_t piece_cols) {
    kernel(words + word, y + element, piece_rows, piece_cols);
  });
}

void unpack_u8(const uint32_t* words, uint8_t* y, int64_t rows, int64_t cols, int threads) {
  const auto kernel = kKernels.get()->unpack_u8;
  for_pieces(rows, cols, threads, [&](int64_t element, int64_t word, int64_t piece_rows, int64_t piece_cols) {
    kernel(words + word, y + element, piece_rows, piece_cols);
  });
}

void transpose_bits(const uint32_t* w, int64_t population, int64_t rows, int64_t cols, uint32_t* out, int threads) {
  const auto kernel = kKernels.get()->transpose_tile;
  const int64_t w_stride = words_for(cols), out_stride = words_for(rows);
  const int64_t down = ceil_div(rows, kTile), across = ceil_div(cols, kTile), tasks = population * down * across;
  parallel_for(tasks <= 2 ? 1 : threads, tasks, [&](int64_t task) {
    const int64_t p = task / (down * across), r = task / across % down, c = task % across;
    kernel(w + (p * rows + r * kTile) * w_stride + c * kTileWords, w_stride, std::min<int64_t>(kTile, rows - r * kTile),
           std::min<int64_t>(kTileWords, w_stride - c * kTileWords),
           out + (p * cols + c * kTile) * out_stride + r * kTileWords, out_stride,
           std::min<int64_t>(kTile, cols - c * kTile));
  });
}

int64_t popcount(const uint32_t* words, int64_t n, int threads) {
  const auto kernel = kKernels.get()->popcount;
  const int64_t tasks = ceil_div(n, kTaskElements);
  std::atomic<int64_t> total{0};
  parallel_for(tasks <= 2 ? 1 : threads, tasks, [&](int64_t task) {
    const int64_t begin = task * kTaskElements;
    total += kernel(words + begin, std::min(kTaskElements, n - begin));
  });
  return total;
}

}  // namespace fastbin
