// bit_linear for a few samples: bits of w become operands of the tensor cores by one AND each.
//
// Operands and errors: bit_linear_vector_operands.h. float32 is not taken: csrc/README.md says why.
//
// A warp has 32 rows, reads 128 bytes of each at a time into shared memory, asynchronously, and multiplies what it read
// before. The warps of a block deal out rows and stages of inputs; so that each multiprocessor turns fewer of x's
// inputs into operands, two blocks of a cluster may halve them. Sums of warps and blocks are added at the end, in
// order.
#include <algorithm>
#include <type_traits>

#include "cuda/bit_linear_vector_operands.h"

namespace fastbin::cuda {
namespace {

constexpr int kMostWarps = 16;
constexpr int kStageChunks = 2;
constexpr int kStageWords = kStageChunks * kChunk / 32;  // a cache line
constexpr int kWarpRows = 32;
constexpr int kSlotWords = kWarpRows * kStageWords;

// How the work is cut: `warps` of a block are groups of 32 rows times `splits` of its stages; a cluster's blocks halve
// the stages; those of a block are `panels`, whose part of x is in shared memory at a time.
struct Cut {
  int warps, splits, cluster, panels, panel_stages;
  unsigned row_blocks, sample_blocks;
  bool whole_chunks;    // rows of w are whole 16-byte chunks and start on 16 bytes
  bool whole_fours;     // four values of x can be read at once
  bool w_leaves_first;  // of L2
};

// Element e of four words.
__device__ __forceinline__ uint32_t word_of(const uint4& words, int e) {
  return e == 0 ? words.x : e == 1 ? words.y : e == 2 ? words.z : words.w;
}

// Adds to `sums` the product of a chunk of 32 rows, of which this lane has words 4 q .. 4 q + 3 of rows g, g + 8, g +
// 16 and g + 24, with `right`, where this lane's pieces of column g start.
template <int kBytes, Way kWay, int kColumns, typename Sum, int kTiles>
__device__ __forceinline__ void multiply(Sum (&sums)[2][kTiles][4], const uint4 (&w)[4], const uint4* right,
                                         const float* units) {
  constexpr int kMasks = kWay == Way::kHalf ? 16 : 8, kPerSample = columns_of(kBytes, kWay);
  std::conditional_t<kWay == Way::kHalf, float, int32_t> counts[2][kTiles][4] = {};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int h = 0; h < kMasks / 4; ++h) {
      uint32_t word[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) word[r] = kWay == Way::kHalf ? exponent_bits(word_of(w[r], i), h) : word_of(w[r], i);
      uint4 b[kTiles];
#pragma unroll
      for (int n = 0; n < kTiles; ++n) b[n] = right[(i * (kMasks / 4) + h) * (4 * kColumns) + 32 * n];
#pragma unroll
      for (int m = 0; m < 4; ++m) {  // two masks of two rows of fragments
        uint32_t a[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int bit = m / 2 * 2 + e / 2, r = m % 2 * 2 + e % 2;
          a[e] = word[r] & (kWay == Way::kHalf ? 0x04000400u << bit : 0x01010101u << (4 * h + bit));
        }
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          const uint32_t b0 = word_of(b[n], m / 2 * 2), b1 = word_of(b[n], m / 2 * 2 + 1);
          if constexpr (kWay == Way::kHalf) {
            multiply_add<true>(counts[m % 2][n], a, b0, b1);
          } else {
            byte_mma(counts[m % 2][n], a, b0, b1);
          }
        }
      }
    }
  }
  const int q = static_cast<int>(threadIdx.x % 4);
  float weight[2];  // of this lane's columns
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    weight[e] = kWay == Way::kBytes ? power(8 * ((2 * q + e) % kPerSample) - 7) : 0.5f;
  }
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if constexpr (kBytes == 1) {  // its two columns are this lane's
          if (e % 2 == 0) sums[m][n][e] += (counts[m][n][e] + 256 * counts[m][n][e + 1]) >> 7;
        } else {
          sums[m][n][e] =
              fmaf(static_cast<float>(counts[m][n][e]) * weight[e % 2], units[8 * n + 2 * q + e % 2], sums[m][n][e]);
        }
      }
    }
  }
}

template <int kBytes, Way kWay, int kColumns>
__global__ void __launch_bounds__(32 * kMostWarps, 1) bit_linear_vector_kernel(const BitLinear p, const Cut cut) {
  constexpr int kTiles = (kColumns + 7) / 8, kPerSample = columns_of(kBytes, kWay);
  constexpr int kPieces = pieces_of(kWay, kColumns), kUnits = 8 * kTiles;
  using Sum = std::conditional_t<kBytes == 1, int32_t, float>;
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int q = lane % 4, g = lane / 4;
  unsigned index = blockIdx.x;
  const int rank = static_cast<int>(index % static_cast<unsigned>(cut.cluster));
  index /= static_cast<unsigned>(cut.cluster);
  const int first_sample = static_cast<int>(index % cut.sample_blocks) * (kColumns / kPerSample);
  index /= cut.sample_blocks;
  const int64_t member = index / cut.row_blocks;
  const int split = warp % cut.splits, group = warp / cut.splits, block_rows = cut.warps / cut.splits * kWarpRows;
  const int64_t first_row = int64_t{index % cut.row_blocks} * block_rows, words = p.words();
  const int64_t stages = int64_t{cut.panels} * cut.panel_stages, first_stage = rank * stages;
  const int panel_chunks = cut.panel_stages * kStageChunks;
  const int64_t samples_left = p.batch - first_sample;
  const int samples = samples_left < kColumns / kPerSample ? static_cast<int>(samples_left) : kColumns / kPerSample;

  uint32_t* slot = dynamic_shared() + warp * kSlotWords;
  uint4* pieces = reinterpret_cast<uint4*>(dynamic_shared() + cut.warps * kSlotWords);
  float* units = reinterpret_cast<float*>(pieces + panel_chunks * kPieces);
  Sum* partial = reinterpret_cast<Sum*>(units + panel_chunks * kUnits);  // [splits, kColumns, block_rows]

  // A warp takes chunks of samples, one after the other, and asks for the next one's values before it turns this one's
  // into operands. The first are asked for before w, which would hold them up.
  uint32_t fours[4][kBytes];
  const int tasks = panel_chunks * samples;
  const auto fetch = [&](int panel, int task) {
    const int64_t row = (member * p.batch + first_sample + task / panel_chunks) * p.inputs;
    const int64_t chunk = (first_stage + int64_t{panel} * cut.panel_stages) * kStageChunks + task % panel_chunks;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t input =
          chunk * kChunk + (kWay == Way::kHalf ? 32 * (4 * q + g / 4 + j / 2 * 2) + 4 * (g % 4) + j % 2 * 16
                                               : 32 * (4 * q + g / 2) + 4 * (g % 2) + 8 * j);
      load_four(fours[j], p.x, row + input, p.inputs - input, cut.whole_fours);
    }
  };
  if (warp < tasks) fetch(0, warp);

  const uint64_t policy = cache_policy(cut.w_leaves_first);
  const int64_t lane_row = first_row + group * kWarpRows + lane / 8;
  const uint32_t* lane_words = p.w + (member * p.rows + lane_row) * words;
  // Chunks of 16 bytes of odd rows lie four further, so that the quads of two rows meet different banks.
  uint32_t* lane_slot = slot + lane / 8 * kStageWords + (lane % 8 ^ lane / 8 % 2 * 4) * 4;
  const int64_t rows_left = p.rows - lane_row;
  int64_t load_stage = split;
  const auto load = [&] {
    const int64_t word = (first_stage + load_stage) * kStageWords + lane % 8 * 4;
    const int64_t words_left = load_stage < stages ? words - word : 0;
    const uint32_t* from = lane_words + word;
    if (cut.whole_chunks) {
#pragma unroll
      for (int r = 0; r < kWarpRows; r += 4, from += 4 * words) {
        copy_async<16>(lane_slot + r * kStageWords, from, words_left > 0 && r < rows_left, policy);
      }
    } else {
#pragma unroll 1
      for (int r = 0; r < kWarpRows; r += 4, from += 4 * words) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          copy_async<4>(lane_slot + r * kStageWords + i, from + i, i < words_left && r < rows_left, policy);
        }
      }
    }
    commit_copies();
    load_stage += cut.splits;
  };
  load();

  Sum sums[2][kTiles][4] = {};
  for (int panel = 0; panel < cut.panels; ++panel) {
    if (panel > 0) {
      __syncthreads();  // the panel before is read by none
      if (warp < tasks) fetch(panel, warp);
    }
    for (int task = warp; task < tasks; task += cut.warps) {
      uint32_t now[4][kBytes];
#pragma unroll
      for (int j = 0; j < 4 * kBytes; ++j) now[j / kBytes][j % kBytes] = fours[j / kBytes][j % kBytes];
      if (task + cut.warps < tasks) fetch(panel, task + cut.warps);
      const int chunk = task % panel_chunks, column = task / panel_chunks * kPerSample;
      put<kBytes, kWay, kColumns>(pieces + chunk * kPieces + 4 * column + q, units + chunk * kUnits + column, now,
                                  p.type);
    }
    __syncthreads();

    for (int stage = split; stage < cut.panel_stages; stage += cut.splits) {
      wait_copies<0>();
      __syncwarp();
#pragma unroll
      for (int j = 0; j < kStageChunks; ++j) {
        const auto* chunks = reinterpret_cast<const uint4*>(slot) + 8 * g + (q ^ (g % 2 ^ j) * 4);
        uint4 w[4];
#pragma unroll
        for (int r = 0; r < 4; ++r) w[r] = chunks[64 * r];
        if (j == kStageChunks - 1) {
          __syncwarp();
          load();
        }
        const int chunk = stage * kStageChunks + j;
        multiply<kBytes, kWay, kColumns>(
            sums, w, pieces + chunk * kPieces + 4 * (g % (kColumns < 8 ? kColumns : 8)) + q, units + chunk * kUnits);
      }
    }
  }

#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int column = 8 * n + 2 * q + e % 2, row = group * kWarpRows + 16 * m + g + e / 2 * 8;
        if (column < kColumns) partial[(split * kColumns + column) * block_rows + row] = sums[m][n][e];
      }
    }
  }
  wait_copies<0>();  // of nothing, but into shared memory
  if (cut.cluster > 1) {
    blocks_sync();
  } else {
    __syncthreads();
  }
  const int share = block_rows / cut.cluster;
  for (int i = static_cast<int>(threadIdx.x); i < share * samples; i += static_cast<int>(blockDim.x)) {
    const int sample = i / share, local = rank * share + i % share;
    Sum sum = 0;
    for (int block = 0; block < cut.cluster; ++block) {
      for (int k = 0; k < cut.splits; ++k) {
#pragma unroll
        for (int c = 0; c < kPerSample; ++c) {
          const Sum* from = partial + (k * kColumns + sample * kPerSample + c) * block_rows + local;
          if (cut.cluster == 1) {
            sum += *from;
          } else if constexpr (kBytes == 1) {
            sum += static_cast<int32_t>(load_from_block(from, static_cast<unsigned>(block)));
          } else {
            sum += __uint_as_float(load_from_block(from, static_cast<unsigned>(block)));
          }
        }
      }
    }
    const int64_t row = first_row + local, at = (member * p.batch + first_sample + sample) * p.rows + row;
    if (row >= p.rows) continue;
    if constexpr (kBytes == 2) {
      static_cast<uint16_t*>(p.y)[at] = p.type == Scalar::kFloat16 ? half_of_float(sum) : bfloat16_of_float(sum);
    } else {
      static_cast<Sum*>(p.y)[at] = sum;
    }
  }
  if (cut.cluster > 1) blocks_sync();  // none leaves while another reads its sums
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <int kBytes, Way kWay, int kColumns>
void run(const BitLinear& p, const Queue& queue, const Shape& shape, int capable) {
  constexpr int64_t kSamples = kColumns / columns_of(kBytes, kWay);
  // A chunk's pieces and units of x; a warp's slot, and its sums at the end.
  constexpr int64_t kStageBytes = kStageChunks * (16 * pieces_of(kWay, kColumns) + 32 * ((kColumns + 7) / 8));
  constexpr int64_t kWarpBytes = 4 * (kSlotWords + kWarpRows * kColumns);
  const int64_t room = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, queue.device, shape);
  const int64_t multiprocessors = attribute(cudaDevAttrMultiProcessorCount, queue.device, shape);
  const int64_t stages = ceil_div(p.words(), kStageWords);
  Cut cut{};
  cut.sample_blocks = static_cast<unsigned>(ceil_div(p.batch, kSamples));
  // Where x is large, the blocks of a cluster halve it. Machine code for clusters is there for 9.x and 10.x.
  cut.cluster = kStageBytes > 16 * 1024 && stages > 1 && capable >= 90 && capable < 110 ? 2 : 1;
  const int64_t block_stages = ceil_div(stages, cut.cluster);
  // As many rows to a block as leave most multiprocessors one: the more rows, the fewer times x is turned into
  // operands.
  const auto blocks = [&] {
    return p.population * cut.sample_blocks * cut.cluster * ceil_div(p.rows, cut.warps / cut.splits * kWarpRows);
  };
  cut.warps = kMostWarps, cut.splits = 1;
  while (cut.warps > 4 && room < cut.warps * kWarpBytes + kStageBytes) cut.warps /= 2;
  while (2 * cut.splits <= cut.warps && 2 * cut.splits <= block_stages && 4 * blocks() < 3 * multiprocessors)
    cut.splits *= 2;
  while (cut.warps > 4 && cut.warps > cut.splits && 2 * blocks() < multiprocessors - 12) cut.warps /= 2;
  const int64_t held = (room - cut.warps * kWarpBytes) / kStageBytes;
  while (cut.splits > held) cut.splits /= 2;
  const int64_t rounds = ceil_div(block_stages, cut.splits);  // of all warps
  cut.panels = static_cast<int>(ceil_div(rounds, held / cut.splits));
  cut.panel_stages = static_cast<int>(ceil_div(rounds, cut.panels)) * cut.splits;
  const int64_t block_rows = cut.warps / cut.splits * kWarpRows;
  cut.row_blocks = static_cast<unsigned>(ceil_div(p.rows, block_rows));
  cut.whole_chunks = p.words() % 4 == 0 && reinterpret_cast<uintptr_t>(p.w) % 16 == 0;
  cut.whole_fours = p.inputs % 4 == 0 && reinterpret_cast<uintptr_t>(p.x) % (4 * kBytes) == 0;
  // What fills half of L2 will not be there at the next call, and need not push out the rest.
  const int64_t bytes = 4 * p.population * p.rows * p.words();
  cut.w_leaves_first = 2 * bytes > attribute(cudaDevAttrL2CacheSize, queue.device, shape);
  launch_clusters(shape, bit_linear_vector_kernel<kBytes, kWay, kColumns>, blocks(),
                  static_cast<unsigned>(32 * cut.warps),
                  static_cast<std::size_t>(cut.warps * kWarpBytes + cut.panel_stages * kStageBytes),
                  static_cast<unsigned>(cut.cluster), queue, p, cut);
}

}  // namespace

void bit_linear_vector(const BitLinear& p, const Queue& queue) {
  const Shape shape = p.shape("bit_linear_vector");
  const DeviceGuard guard(queue.device, shape);
  const int capable = capability(queue.device, shape);
  switch (p.type) {
    case Scalar::kFloat32:
      throw std::runtime_error("bit_linear_vector: float32 is not taken");
    case Scalar::kBFloat16:
    case Scalar::kFloat16:
      if (p.batch == 1) return run<2, Way::kBytes, 4>(p, queue, shape, capable);
      if (p.batch == 2) return run<2, Way::kBytes, 8>(p, queue, shape, capable);
      if (p.batch <= 8) return run<2, Way::kHalf, 8>(p, queue, shape, capable);
      return run<2, Way::kHalf, 16>(p, queue, shape, capable);
    case Scalar::kInt8:
      if (p.batch <= 4) return run<1, Way::kBytes, 8>(p, queue, shape, capable);
      return run<1, Way::kBytes, 16>(p, queue, shape, capable);
  }
}

}  // namespace fastbin::cuda
