// What the kernels of mask_grad_update share: all but the products.
//
// A block of 256 threads sums a tile of 128 x 128 of the gradient on the tensor cores, lays it into shared memory and
// updates its edges from there, a row of 128 by each warp at a time and 16 bytes a lane. Scores and moments are 24 of
// the 24.25 bytes an edge that Adam moves, 393 KB a tile; gy and x add 131 KB of L2 a tile for 256 samples of 16 bits.
// Two blocks share a multiprocessor: the products of one run while the other's edges stream by.
#pragma once

#include "cuda/mask_update_rule.h"

namespace fastbin::cuda {

constexpr int kTile = 128;  // rows and columns of a tile
constexpr int kThreads = 256;
constexpr int kBlocks = 2;  // on a multiprocessor
constexpr int kWarps = kThreads / 32;
constexpr int kRows = kTile / kWarps;  // that a warp updates
constexpr int kSharedBytes = 4 * kTile * kTile;
constexpr unsigned kAllLanes = 0xffffffffu;

// ------------------------------------------------------------------------------------------------------------ operands

enum class Source { kFloat32, kBFloat16, kFloat16, kBits };

// A product on the tensor cores cuts what it adds off, toward zero, at 2^-24 or so of the largest, and its sum to 24
// bits. Of float32 there are six (three, if x is bits) for 16 samples: added to the whole sum, they were off by 9e-6 of
// the sum of magnitudes after 256 samples, all positive, and by 9e-5 after 4096 (emulated, as on an H100). So the
// products of a stage, of 16 samples, start from zero, the small ones first, and their sum is added in float32, to
// nearest: 3e-7 and 9e-7. The registers that this takes are those of the next stage's samples, which are loaded after
// the products: the block beside has the tensor cores meanwhile.
template <Source kGySource>
constexpr bool kSumsByStage = kGySource == Source::kFloat32;

// Samples of gy and x in shared memory as 16-bit numbers: one plane each, or three for float32. A plane is two panels
// of 64 columns, rows of 128 bytes in the swizzle that both wgmma and ldmatrix read without conflicts.
template <Source kGySource, Source kXSource, int kSamples>
struct Stage {
  static constexpr Source kGy = kGySource, kX = kXSource;
  static constexpr bool kHalf = kGy == Source::kFloat16;
  static constexpr int kStep = kSamples;
  static constexpr int kGyPlanes = kGy == Source::kFloat32 ? 3 : 1, kXPlanes = kX == Source::kFloat32 ? 3 : 1;
  static constexpr int kPanelWords = kStep * 32, kPlaneWords = 2 * kPanelWords;
  static constexpr int kChunks = kStep * kTile / 8 / kThreads;  // of eight columns, a thread's of each operand
  static_assert(4 * (kGyPlanes + kXPlanes) * kPlaneWords <= kSharedBytes);

  // The place of a chunk of a sample in a plane.
  __device__ __forceinline__ static int at(int sample, int chunk) {
    return chunk / 8 * kPanelWords + sample * 32 + (chunk % 8 ^ sample % 8) * 4;
  }
};

__host__ __device__ constexpr int chunk_words(Source source) {
  return source == Source::kFloat32 ? 8 : source == Source::kBits ? 1 : 4;
}

__host__ __device__ constexpr int bytes_of(Source source) { return source == Source::kFloat32 ? 4 : 2; }

// Where a lane's columns of a sample are, and how many of them exist.
template <Source kSource>
struct Chunks {
  const char* from;
  int64_t stride;  // bytes from one sample to the next
  int columns;     // 0 .. 8
  bool wide;       // samples are whole chunks and start on 16 bytes

  // n columns a sample, those from `col` on.
  __device__ __forceinline__ Chunks(const void* operand, int64_t sample, int64_t n, int64_t col)
      : stride(kSource == Source::kBits ? (n + 31) / 32 * 4 : n * bytes_of(kSource)),
        columns(static_cast<int>(max(min(n - col, int64_t{8}), int64_t{0}))),
        wide(n % 8 == 0 && reinterpret_cast<uintptr_t>(operand) % 16 == 0) {
    from = static_cast<const char*>(operand) + sample * stride +
           (kSource == Source::kBits ? col / 8 : col * bytes_of(kSource));
  }

  // Those `samples` further on, as they are in memory; zeros if !inside and for what does not exist.
  __device__ __forceinline__ void load(int64_t samples, bool inside, uint32_t (&chunk)[chunk_words(kSource)]) const {
#pragma unroll
    for (uint32_t& word : chunk) word = 0;
    if (!inside || columns == 0) return;
    const char* at = from + samples * stride;
    if constexpr (kSource == Source::kBits) {
      chunk[0] = *reinterpret_cast<const uint8_t*>(at);
    } else if (wide) {
#pragma unroll
      for (int i = 0; i < chunk_words(kSource) / 4; ++i) {
        const uint4 part = reinterpret_cast<const uint4*>(at)[i];
        chunk[4 * i] = part.x, chunk[4 * i + 1] = part.y, chunk[4 * i + 2] = part.z, chunk[4 * i + 3] = part.w;
      }
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (i >= columns) break;
        if constexpr (kSource == Source::kFloat32) {
          chunk[i] = reinterpret_cast<const uint32_t*>(at)[i];
        } else {
          chunk[i / 2] |= static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(at)[i]) << 16 * (i % 2);
        }
      }
    }
  }
};

// Lays a chunk into its plane. A float32 is the sum of three bfloat16, its upper, middle and lower 8 bits, in three
// planes. Of the nine products of two such numbers those of planes a and b with a + b > 2 are left out: three, of at
// most 2^-23, 2^-23 and 2^-31 of the product.
template <Source kSource, bool kHalf, int kPlaneWords>
__device__ __forceinline__ void store_chunk(uint32_t* plane, const uint32_t (&chunk)[chunk_words(kSource)]) {
  if constexpr (kSource == Source::kFloat32) {
    float rest[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) rest[i] = __uint_as_float(chunk[i]);
#pragma unroll
    for (int part = 0; part < 3; ++part) {
      uint32_t pairs[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t a = __float_as_uint(rest[2 * i]), b = __float_as_uint(rest[2 * i + 1]);
        pairs[i] = __byte_perm(a, b, 0x7632);  // their upper halves
        rest[2 * i] -= __uint_as_float(a & 0xffff0000u);
        rest[2 * i + 1] -= __uint_as_float(b & 0xffff0000u);
      }
      *reinterpret_cast<uint4*>(plane + part * kPlaneWords) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
  } else if constexpr (kSource == Source::kBits) {
    constexpr uint32_t kOne = kHalf ? 0x3c00 : 0x3f80;
    const auto pair = [&](int i) { return ((chunk[0] >> i & 1) | (chunk[0] >> (i + 1) & 1) << 16) * kOne; };
    *reinterpret_cast<uint4*>(plane) = make_uint4(pair(0), pair(2), pair(4), pair(6));
  } else {
    *reinterpret_cast<uint4*>(plane) = make_uint4(chunk[0], chunk[1], chunk[2], chunk[3]);
  }
}

// A tile: its member, and its place among the tiles. In 32 bits, of which a launch has no more blocks.
struct Place {
  unsigned member, tile_row, tile_col;

  __device__ __forceinline__ int64_t row() const { return int64_t{tile_row} * kTile; }
  __device__ __forceinline__ int64_t col() const { return int64_t{tile_col} * kTile; }
};

// Adds a tile of gyᵀ x to `sums`.
template <typename Sums>
__device__ __forceinline__ void sum_gradient(Sums& sums, const MaskUpdate& p, const Gradient& gradient,
                                             const Place& place, uint32_t* shared) {
  using Samples = typename Sums::Samples;
  constexpr Source kGy = Samples::kGy, kX = Samples::kX;
  const int chunk = static_cast<int>(threadIdx.x % (kTile / 8)), sample = static_cast<int>(threadIdx.x / (kTile / 8));
  uint32_t* const x_planes = shared + Samples::kGyPlanes * Samples::kPlaneWords;

  constexpr int kApart = kThreads / (kTile / 8);  // samples from one of a thread's chunks to the next
  Chunks<kGy> gy_chunks(gradient.gy, place.member * gradient.batch + sample, p.rows, place.row() + 8 * chunk);
  Chunks<kX> x_chunks(gradient.x, place.member * gradient.batch + sample, p.cols, place.col() + 8 * chunk);
  uint32_t gy[Samples::kChunks][chunk_words(kGy)], x[Samples::kChunks][chunk_words(kX)];
  int left = static_cast<int>(gradient.batch) - sample;
  const auto load = [&] {
#pragma unroll
    for (int i = 0; i < Samples::kChunks; ++i) {
      gy_chunks.load(i * kApart, i * kApart < left, gy[i]);
      x_chunks.load(i * kApart, i * kApart < left, x[i]);
    }
  };
  load();
  for (int first = 0; first < gradient.batch; first += Samples::kStep) {
    __syncthreads();  // the samples before are read by none
#pragma unroll
    for (int i = 0; i < Samples::kChunks; ++i) {
      const int at = Samples::at(sample + i * kApart, chunk);
      store_chunk<kGy, Samples::kHalf, Samples::kPlaneWords>(shared + at, gy[i]);
      store_chunk<kX, Samples::kHalf, Samples::kPlaneWords>(x_planes + at, x[i]);
    }
    Sums::publish();
    __syncthreads();
    gy_chunks.from += Samples::kStep * gy_chunks.stride, x_chunks.from += Samples::kStep * x_chunks.stride;
    left -= Samples::kStep;
    if constexpr (!kSumsByStage<kGy>) load();
    sums.add(shared, x_planes);
    if constexpr (kSumsByStage<kGy>) load();
  }
}

// --------------------------------------------------------------------------------------------------------------- edges

// The place of an edge in the tile of the gradient. Both the two columns a lane that the products leave and the four
// that an update takes meet no bank twice.
__device__ __forceinline__ int edge_at(int row, int col) { return row * kTile + (col ^ (row & 3) << 3); }

// Rows `row` and `row` + 8 of a fragment of kTiles tiles of 8 columns from `col`, as multiply_add leaves it.
template <int kTiles>
__device__ __forceinline__ void store_sums(float* tile, int row, int col, const float (&sums)[kTiles][4]) {
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float* at = tile + edge_at(row + 8 * half + lane / 4, col + 8 * t + 2 * (lane % 4));
      *reinterpret_cast<float2*>(at) = make_float2(sums[t][2 * half], sums[t][2 * half + 1]);
    }
  }
}

// The first `count` of four numbers. wide: they start on 16 bytes, and count is 0 or 4.
__device__ __forceinline__ void load_edges(const float* from, int count, bool wide, float (&out)[4]) {
  if (wide && count > 0) {
    const float4 v = __ldcs(reinterpret_cast<const float4*>(from));
    out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = i < count ? __ldcs(from + i) : 0.0f;
  }
}
__device__ __forceinline__ void store_edges(float* to, int count, bool wide, const float (&v)[4]) {
  if (wide) {
    if (count > 0) __stcs(reinterpret_cast<float4*>(to), make_float4(v[0], v[1], v[2], v[3]));
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < count) __stcs(to + i, v[i]);
    }
  }
}

// Random words for columns 4 k .. 4 k + 3 of a word, k = lane % 8. Each of its eight lanes computes a block, which
// serves elements j, 8 + j, 16 + j and 24 + j of the word for block 8 * word + j.
__device__ __forceinline__ void draw(uint64_t seed, uint64_t step, int64_t word, uint32_t (&random)[4]) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const uint4 block = philox(seed, step, static_cast<uint64_t>(word) * 8 + static_cast<uint64_t>(lane % 8));
  const uint32_t parts[4] = {block.x, block.y, block.z, block.w};
#pragma unroll
  for (int part = 0; part < 4; ++part) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t other = __shfl_sync(kAllLanes, parts[part], (lane & 24) + lane % 2 * 4 + i);
      if (lane % 8 / 2 == part) random[i] = other;
    }
  }
}

// Updates the rows warp + kWarps * i, begin <= i < end, of a tile by its gradient `sums`.
template <Rule kRule, bool kSample, typename Sums>
__device__ __forceinline__ void update_edges(const MaskUpdate& p, const Place& place, int begin, int end,
                                             const Sums& sums, float* tile) {
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const auto address = [](const float* pointer) { return reinterpret_cast<uintptr_t>(pointer); };
  const bool wide = p.cols % 4 == 0 && (address(p.scores) | address(p.first) | address(p.second)) % 16 == 0;
  const int64_t col = place.col() + 4 * lane, row_words = p.row_words();
  const int64_t first_row = place.row() + warp, member_row = place.member * p.rows + first_row;
  const int columns = static_cast<int>(max(min(p.cols - col, int64_t{4}), int64_t{0}));
  const auto count_of = [&](int i) { return first_row + kWarps * i < p.rows ? columns : 0; };
  const auto edge_of = [&](int i) { return (member_row + kWarps * i) * p.cols + col; };
  const auto word_of = [&](int i) { return (member_row + kWarps * i) * row_words + col / 32; };

  constexpr int kAhead = Sums::kAhead;  // rows whose scores and moments are on their way while one is updated
  Edges ahead[kAhead];
  uint32_t word_ahead[kAhead] = {};
  const auto load = [&](int i, int slot) {
    const int count = count_of(i);
    if constexpr (kRule != Rule::kBop) load_edges(p.scores + edge_of(i), count, wide, ahead[slot].scores);
    load_edges(p.first + edge_of(i), count, wide, ahead[slot].first);
    if constexpr (kRule == Rule::kAdam) load_edges(p.second + edge_of(i), count, wide, ahead[slot].second);
    word_ahead[slot] = count > 0 ? p.words[word_of(i)] : 0;
  };
#pragma unroll
  for (int slot = 0; slot < kAhead; ++slot) {
    if (begin + slot < end) load(begin + slot, slot);
  }

  __syncthreads();  // the samples are read by none
  sums.store(tile);
  __syncthreads();

  const UpdateConstants constants = p.constants[place.member];
  int flips = 0;
#pragma unroll 1
  for (int first = begin; first < end; first += kAhead) {
#pragma unroll
    for (int slot = 0; slot < kAhead; ++slot) {
      const int i = first + slot, count = count_of(i);
      if (i >= end) break;
      Edges edges = ahead[slot];
      const uint32_t old = word_ahead[slot];
      if (i + kAhead < end) load(i + kAhead, slot);
      const float4 g = *reinterpret_cast<const float4*>(tile + edge_at(warp + kWarps * i, 4 * lane));
      uint32_t random[4] = {};
      if constexpr (kSample) {
        const auto seed = static_cast<uint64_t>(p.seed[place.member]), step = static_cast<uint64_t>(*p.step);
        draw(seed, step, word_of(i) - place.member * p.rows * row_words, random);
      }
      uint32_t bits = move<kRule, kSample>(edges, {g.x, g.y, g.z, g.w}, old >> lane % 8 * 4, random, constants);
      if constexpr (kRule != Rule::kBop) store_edges(p.scores + edge_of(i), count, wide, edges.scores);
      store_edges(p.first + edge_of(i), count, wide, edges.first);
      if constexpr (kRule == Rule::kAdam) store_edges(p.second + edge_of(i), count, wide, edges.second);
      bits = (bits & ((1u << count) - 1)) << lane % 8 * 4;
#pragma unroll
      for (int mask = 1; mask < 8; mask *= 2) bits |= __shfl_xor_sync(kAllLanes, bits, mask);
      if (lane % 8 == 0 && count > 0) {
        p.words[word_of(i)] = bits;
        flips += __popc(bits ^ old);
      }
    }
  }
#pragma unroll
  for (int mask = 8; mask < 32; mask *= 2) flips += __shfl_xor_sync(kAllLanes, flips, mask);
  if (lane == 0 && flips != 0) {
    atomicAdd(reinterpret_cast<unsigned long long*>(p.flips + place.member), static_cast<unsigned long long>(flips));
  }
}

// A block's work: the part blockIdx.x % parts of a tile's rows, of which every part sums the whole gradient.
template <typename Sums>
__device__ __forceinline__ void update_tile(const MaskUpdate& p, const Gradient& gradient, int parts) {
  const unsigned index = blockIdx.x / static_cast<unsigned>(parts);
  const int begin = static_cast<int>(blockIdx.x % parts) * (kRows / parts), end = begin + kRows / parts;
  const auto tile_rows = static_cast<unsigned>((p.rows + kTile - 1) / kTile);
  const auto tile_cols = static_cast<unsigned>((p.cols + kTile - 1) / kTile);
  const Place place{index / tile_cols / tile_rows, index / tile_cols % tile_rows, index % tile_cols};

  uint32_t* const shared = dynamic_shared();
  Sums sums;
  sum_gradient(sums, p, gradient, place, shared);
  float* const tile = reinterpret_cast<float*>(shared);
  if (p.rule == Rule::kBop) {
    update_edges<Rule::kBop, false>(p, place, begin, end, sums, tile);
  } else if (p.rule == Rule::kSgd && p.sample) {
    update_edges<Rule::kSgd, true>(p, place, begin, end, sums, tile);
  } else if (p.rule == Rule::kSgd) {
    update_edges<Rule::kSgd, false>(p, place, begin, end, sums, tile);
  } else if (p.sample) {
    update_edges<Rule::kAdam, true>(p, place, begin, end, sums, tile);
  } else {
    update_edges<Rule::kAdam, false>(p, place, begin, end, sums, tile);
  }
}

// -------------------------------------------------------------------------------------------------------------- launch

inline Shape shape_of(const char* kernel, const MaskUpdate& p, const Gradient& gradient) {
  return {kernel, p.population, p.rows, p.cols, gradient.batch};
}

// Launches Kernels::of<gy's source, x's source>(). With too few tiles for all multiprocessors, several blocks have a
// tile.
template <typename Kernels>
void launch_update(const char* name, const MaskUpdate& p, const Gradient& gradient, const Queue& queue) {
  const Shape shape = shape_of(name, p, gradient);
  const DeviceGuard guard(queue.device, shape);
  const int64_t tiles = p.population * ((p.rows + kTile - 1) / kTile) * ((p.cols + kTile - 1) / kTile);
  const int64_t places = kBlocks * attribute(cudaDevAttrMultiProcessorCount, queue.device, shape);
  int parts = 1;
  while (2 * parts <= kRows && 2 * parts * tiles <= places) parts *= 2;
  const auto run = [&](void (*kernel)(MaskUpdate, Gradient, int)) {
    launch(shape, kernel, tiles * parts, kThreads, kSharedBytes, queue, p, gradient, parts);
  };
  constexpr Source kFloat32 = Source::kFloat32, kBFloat16 = Source::kBFloat16, kFloat16 = Source::kFloat16;
  constexpr Source kBits = Source::kBits;
  if (gradient.type == Scalar::kFloat32) {
    run(gradient.bits ? Kernels::template of<kFloat32, kBits>() : Kernels::template of<kFloat32, kFloat32>());
  } else if (gradient.type == Scalar::kBFloat16) {
    run(gradient.bits ? Kernels::template of<kBFloat16, kBits>() : Kernels::template of<kBFloat16, kBFloat16>());
  } else {
    run(gradient.bits ? Kernels::template of<kFloat16, kBits>() : Kernels::template of<kFloat16, kFloat16>());
  }
}

}  // namespace fastbin::cuda
