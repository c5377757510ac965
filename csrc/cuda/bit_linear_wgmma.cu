// bit_linear and bit_linear_t of many samples by wgmma, decoded bits from registers; compute capability 9.0.
//
// The product is computed transposed, yᵀ = w xᵀ: wgmma reads its left operand from registers, so the decoded bits never
// touch shared memory. A block makes 128 outputs of kBatch samples, each of its two consumer warpgroups 64 outputs, in
// kBatch / 2 registers of sums a thread. A stage holds 128 inputs: kBatch rows of x by the copy engine in the 128-byte
// swizzle, and the bits of 128 outputs by cp.async. m64n256k16 takes 128 cycles, in which a warp needs some 20
// instructions to decode the bits of the next one; they run while products are in flight.
//
// Blocks run in clusters of two. Two tiles of outputs share their samples, which come from L2 once for both: 64 bytes a
// cycle and multiprocessor, which 256 samples take without that, are more than it gives. Such blocks stay for several
// tiles, and the loads of the next one run while they store. Where tiles are few, the blocks take half of the inputs
// of one tile each: each sends the other its sums of half of the samples, and adds and stores its own half.
#include <type_traits>

#include "cuda/bit_linear_bits.h"
#include "cuda/tile.h"

namespace fastbin::cuda {
namespace {

constexpr unsigned kCluster = 2;
constexpr int kConsumers = 256;
constexpr int kThreads = kConsumers + kCopiers;
constexpr std::size_t kMostShared = 227 * 1024;

template <Scalar kType>
using SumOf = std::conditional_t<kType == Scalar::kInt8, int32_t, float>;

// What the two blocks of a cluster have in common: the samples of two tiles of outputs, each block fetching half of
// them for both; or one tile, each block summing over half of the inputs.
enum class Pair { kSamples, kTile };

// A way to run a product.
template <Scalar kTypeOf, bool kTransposed, int kBatchOf, Pair kPairOf>
struct Plan {
  static constexpr Scalar kType = kTypeOf;
  static constexpr int kBatch = kBatchOf;
  static constexpr Pair kPair = kPairOf;
  using Source = Bits<kType, kTransposed>;
  static constexpr int kBoxes = kType == Scalar::kInt8 ? 1 : 2;  // of 128 bytes of each sample; a product takes 32
  static constexpr int kBoxWords = 32 * kBatch;
  static constexpr int kXWords = kBoxes * kBoxWords;
  static constexpr int kStageWords = kXWords + static_cast<int>(ceil_div(Source::kBytes, 1024)) * 256;
  static constexpr int kExchangeWords =
      kPair == Pair::kTile ? kTileOutputs * kBatch / 2 : 0;  // sums of half of the samples
  static constexpr int kStages = static_cast<int>((kMostShared - 4 * kExchangeWords - sizeof(uint64_t)) /
                                                  (4 * kStageWords + 2 * sizeof(uint64_t)));
  static constexpr std::size_t kSharedBytes =
      std::size_t{kStages} * (4 * kStageWords + 2 * sizeof(uint64_t)) + 4 * kExchangeWords + sizeof(uint64_t);

  // Clusters that a product is cut into, a tile or two of them each.
  static __host__ __device__ int64_t clusters(const BitProduct& p) {
    const int64_t tiles_o = ceil_div(p.outputs, kPair == Pair::kTile ? kTileOutputs : 2 * kTileOutputs);
    return p.population * tiles_o * ceil_div(p.batch, kBatch);
  }
};

// A tile of y: the first of its samples and outputs.
struct Place {
  int64_t member, sample, output;
};

// Tiles of outputs one after the other: blocks that run at a time then share samples, whose rows are longer than w's.
template <typename Plan>
__device__ __forceinline__ Place place_of(const BitProduct& p, int64_t cluster, unsigned rank) {
  const int64_t cluster_outputs = Plan::kPair == Pair::kTile ? kTileOutputs : 2 * kTileOutputs;
  const int64_t tiles_o = ceil_div(p.outputs, cluster_outputs), tiles_b = ceil_div(p.batch, Plan::kBatch);
  return {cluster / (tiles_o * tiles_b), cluster / tiles_o % tiles_b * Plan::kBatch,
          cluster % tiles_o * cluster_outputs + (Plan::kPair == Pair::kTile ? 0 : rank * kTileOutputs)};
}

// Stages one after the other, and the parity of the barriers' phases.
struct Ring {
  int stage;
  unsigned parity;
};

template <typename Plan>
__device__ __forceinline__ Ring after(Ring ring) {
  return ring.stage + 1 < Plan::kStages ? Ring{ring.stage + 1, ring.parity} : Ring{0, ring.parity ^ 1};
}

// Stores the sums of a warp's 16 outputs, and 8 * kCount samples, from `place` on: sums[t][0], [1] are of output g and
// samples 8 t + 2 q, 8 t + 2 q + 1, and [2], [3] of output g + 8.
template <Scalar kType, int kCount>
__device__ __forceinline__ void store(const BitProduct& p, const Place& place, int lane,
                                      const SumOf<kType> (&sums)[kCount][4]) {
  const int g = lane / 4, q = lane % 4;
  if constexpr (kType == Scalar::kInt8) {
    const int64_t sample = place.sample + 2 * q, output = place.output + g;
    const int64_t samples = p.batch - sample, outputs = p.outputs - output;
    int32_t* y = static_cast<int32_t*>(p.y) + (place.member * p.batch + sample) * p.outputs + output;
#pragma unroll
    for (int t = 0; t < kCount; ++t) {
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        if (8 * t + odd < samples) {
          if (outputs > 0) y[0] = sums[t][odd];
          if (outputs > 8) y[8] = sums[t][2 + odd];
        }
        y += odd == 0 ? p.outputs : 7 * p.outputs;
      }
    }
  } else {
    // Transposed, as neighbouring outputs lie together in y: then a lane has outputs 2 q, 2 q + 1 and 8 further on of
    // sample 8 t + g, and with its neighbour's half four in a row.
    const bool odd = q % 2 != 0;
    const int64_t sample = place.sample + g, output = place.output + (odd ? 8 : 0) + q / 2 * 4;
    const int64_t samples = p.batch - sample, outputs = p.outputs - output;
    uint16_t* y = static_cast<uint16_t*>(p.y) + (place.member * p.batch + sample) * p.outputs + output;
    const auto pair = [](float first, float second) {
      return transpose_matrix(kType == Scalar::kBFloat16 ? bfloat16s_of_floats(first, second)
                                                         : halves_of_floats(first, second));
    };
#pragma unroll
    for (int t = 0; t < kCount; ++t) {
      const uint32_t lower = pair(sums[t][0], sums[t][1]), upper = pair(sums[t][2], sums[t][3]);
      const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? lower : upper, 1);
      const uint2 four = odd ? make_uint2(other, upper) : make_uint2(lower, other);
      if (8 * t < samples) {
        if (p.outputs % 4 == 0) {
          if (outputs > 0) *reinterpret_cast<uint2*>(y) = four;
        } else {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            if (outputs > i) y[i] = static_cast<uint16_t>((i < 2 ? four.x : four.y) >> (i % 2 * 16));
          }
        }
      }
      y += 8 * p.outputs;
    }
  }
}

// Sends the other block of the cluster its half of the sums, and stores block kRank's own, both parts of it.
template <typename Plan, int kRank>
__device__ __forceinline__ void add_and_store(const BitProduct& p, const Place& place, int lane, uint32_t* exchange,
                                              uint64_t* arrived,
                                              const SumOf<Plan::kType> (&sums)[Plan::kBatch / 8][4]) {
  constexpr int kHalf = Plan::kBatch / 16, kOwn = kRank * kHalf, kOther = kHalf - kOwn;
  uint32_t* place_here = exchange + 4 * threadIdx.x;  // of a thread's first four; that of the same thread there
#pragma unroll
  for (int t = 0; t < kHalf; ++t) send(place_here + 4 * kConsumers * t, sums[kOther + t], arrived, 1 - kRank);
  cluster_barrier_wait(arrived, 0);
  SumOf<Plan::kType> both[kHalf][4];
#pragma unroll
  for (int t = 0; t < kHalf; ++t) {
    const auto* other = reinterpret_cast<const SumOf<Plan::kType>*>(place_here + 4 * kConsumers * t);
#pragma unroll
    for (int i = 0; i < 4; ++i) both[t][i] = sums[kOwn + t][i] + other[i];
  }
  store<Plan::kType>(p, {place.member, place.sample + 8 * kOwn, place.output}, lane, both);
}

template <typename Plan>
__global__ void __launch_bounds__(kThreads, 1)
    bit_linear_wgmma_kernel(const BitProduct p, const __grid_constant__ TensorMap map_x) {
// Compiled for other architectures it would not assemble; bit_linear_wgmma never launches it there.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Source = typename Plan::Source;
  constexpr bool kSharing = Plan::kPair == Pair::kSamples;
  uint32_t* shared = dynamic_shared();
  uint32_t* exchange = shared + Plan::kStages * Plan::kStageWords;
  auto* full = reinterpret_cast<uint64_t*>(exchange + Plan::kExchangeWords);
  uint64_t* empty = full + Plan::kStages;
  uint64_t* arrived = empty + Plan::kStages;  // the other block's sums
  const unsigned rank = cluster_rank();
  const int64_t clusters = Plan::clusters(p), first_cluster = blockIdx.x / kCluster, stride = gridDim.x / kCluster;
  const int64_t all_steps = ceil_div(p.inner, kStageInputs);
  const int64_t most_steps = Plan::kPair == Pair::kTile ? ceil_div(all_steps, kCluster) : all_steps;
  const int64_t first_step = Plan::kPair == Pair::kTile ? rank * most_steps : 0;
  const int64_t steps = first_step + most_steps < all_steps ? most_steps : all_steps - first_step;

  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Plan::kStages; ++stage) {
      barrier_init(full + stage, 1 + kCopiers);  // who announces the bytes of x, and who copies bits
      barrier_init(empty + stage, (kSharing ? kCluster : 1) * kConsumers / 32);  // the warps that read it
    }
    barrier_init(arrived, 1);
    barrier_init_done();
    if constexpr (!kSharing) barrier_expect(arrived, 4 * Plan::kExchangeWords);
  }
  __syncthreads();
  cluster_arrive();
  cluster_wait();  // the other block's barriers are there

  Ring ring{0, 0};
  if (threadIdx.x >= kConsumers) {
    give_registers<56>();
    const int thread = static_cast<int>(threadIdx.x) - kConsumers;
    // A block fetches all samples of a stage, or half of them for both blocks.
    constexpr int kSamples = kSharing ? Plan::kBatch / kCluster : Plan::kBatch;
    const int first_sample = kSharing ? static_cast<int>(rank) * kSamples : 0;
    const auto blocks = static_cast<uint16_t>(kSharing ? (1u << kCluster) - 1 : 1u << rank);
    for (int64_t cluster = first_cluster; cluster < clusters; cluster += stride) {
      const Place place = place_of<Plan>(p, cluster, rank);
      for (int64_t step = first_step; step < first_step + steps; ++step, ring = after<Plan>(ring)) {
        uint32_t* stage = shared + ring.stage * Plan::kStageWords;
        barrier_wait(empty + ring.stage, ring.parity ^ 1);  // at once in the first round
        if (thread == 0) {
          barrier_expect(full + ring.stage, 4 * Plan::kXWords);
#pragma unroll
          for (int box = 0; box < Plan::kBoxes; ++box) {
            copy_box_to(stage + box * Plan::kBoxWords + 32 * first_sample, map_x,
                        (static_cast<int>(step) * Plan::kBoxes + box) * 32,
                        static_cast<int>(place.sample) + first_sample, static_cast<int>(place.member),
                        full + ring.stage, blocks);
          }
        }
        Source::copy(stage + Plan::kXWords, p, place.member, place.output, step * kStageInputs, thread);
        arrive_after_copies(full + ring.stage);
      }
    }
  } else {
    take_registers<224>();
    const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
    const auto release = [&](int stage) {
      if (kSharing ? lane < static_cast<int>(kCluster) : lane == 0) {
        reader_arrive(empty + stage, kSharing ? static_cast<unsigned>(lane) : rank);
      }
    };
    // Registers for a stage's four words: the bits of one group of products are decoded while those of the group before
    // and, maybe, of the one before that are in flight. Their words have been loaded a group earlier.
    constexpr int kGroup =
        Plan::kBatch == 256 && Plan::kType != Scalar::kInt8 ? 1 : 2;  // words: 256 cycles, if possible
    constexpr int kGroups = 4 / kGroup;
    typename Source::Words words[kGroup];
    Operand<Plan::kType> bits[4];
    const auto load = [&](const Ring& from, int group) {
      const uint32_t* stage = shared + from.stage * Plan::kStageWords + Plan::kXWords;
#pragma unroll
      for (int i = 0; i < kGroup; ++i) Source::load(stage, group * kGroup + i, warp, lane, words[i]);
    };
    const auto decode = [&](int group) {
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        Source::decode(words[i], warp, lane, bits[group * kGroup + i]);
        settle(bits[group * kGroup + i]);
      }
    };
    int64_t stages_left = first_cluster < clusters ? ceil_div(clusters - first_cluster, stride) * steps : 0;
    if (stages_left > 0) {
      barrier_wait(full, 0);
      load(ring, 0);
      decode(0);
      load(ring, 1);
    }
    for (int64_t cluster = first_cluster; cluster < clusters; cluster += stride) {
      SumOf<Plan::kType> sums[Plan::kBatch / 8][4];
      int before = 0;
      for (int64_t step = 0; step < steps; ++step) {
        const uint64_t x = swizzled_rows(shared + ring.stage * Plan::kStageWords);
        const Ring next = after<Plan>(ring);
        --stages_left;
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
          begin_products();
#pragma unroll
          for (int i = 0; i < kGroup * Plan::kBoxes; ++i) {
            const int piece = group * kGroup * Plan::kBoxes + i;  // of 32 bytes of each sample
            multiply_wgmma<Plan::kType>(sums, bits[piece / Plan::kBoxes][piece % Plan::kBoxes],
                                        x + piece / 4 * (Plan::kBoxWords / 4) + piece % 4 * 2, step + piece > 0);
          }
          commit_products();
          // Four groups have registers each, two only those of the group before the last.
          if (kGroups == 2) wait_products<1>();
          decode((group + 1) % kGroups);
          if (group + 2 == kGroups && stages_left > 0) barrier_wait(full + next.stage, next.parity);
          if (group + 2 < kGroups) {
            load(ring, group + 2);
          } else if (stages_left > 0) {
            load(next, group + 2 - kGroups);
          }
          if (kGroups == 4) wait_products<1>();
          if (group == 0 && step > 0) release(before);
        }
        before = ring.stage;
        ring = next;
      }
      wait_products<0>();
      release(before);
      Place place = place_of<Plan>(p, cluster, rank);
      place.output += 16 * warp;
      if constexpr (kSharing) {
        store<Plan::kType>(p, place, lane, sums);
      } else if (rank == 0) {
        add_and_store<Plan, 0>(p, place, lane, exchange, arrived, sums);
      } else {
        add_and_store<Plan, 1>(p, place, lane, exchange, arrived, sums);
      }
    }
  }
  if constexpr (kSharing) {
    cluster_arrive();
    cluster_wait();  // until then the other block may copy to this one and arrive at its barriers
  }
#endif
}

template <typename Plan>
void run(const BitProduct& p, const Queue& queue, const Shape& shape, int64_t multiprocessors) {
  const int64_t row_words = p.inner / (Plan::kType == Scalar::kInt8 ? 4 : 2);
  const TensorMap map_x = make_tensor_map(static_cast<const uint32_t*>(p.x), p.population, p.batch, row_words,
                                          Plan::kPair == Pair::kTile ? Plan::kBatch : Plan::kBatch / kCluster, shape);
  int64_t clusters = Plan::clusters(p);
  // Blocks that add their sums do so once: nothing keeps the next ones out of the place of those.
  if (Plan::kPair == Pair::kSamples && clusters > multiprocessors / kCluster) clusters = multiprocessors / kCluster;
  launch_clusters(shape, bit_linear_wgmma_kernel<Plan>, clusters * kCluster, kThreads, Plan::kSharedBytes, kCluster,
                  queue, p, map_x);
}

template <Scalar kType, bool kTransposed>
void run_cheapest(const BitProduct& p, const Queue& queue, const Shape& shape) {
  struct Way {
    int batch;
    Pair pair;
    void (*run)(const BitProduct&, const Queue&, const Shape&, int64_t);
  };
#define FASTBIN_WAY(batch, pair)                            \
  {                                                         \
    batch, pair, run<Plan<kType, kTransposed, batch, pair>> \
  }
  constexpr Way kWays[] = {FASTBIN_WAY(256, Pair::kSamples), FASTBIN_WAY(128, Pair::kSamples),
                           FASTBIN_WAY(64, Pair::kSamples), FASTBIN_WAY(128, Pair::kTile),
                           FASTBIN_WAY(64, Pair::kTile)};
#undef FASTBIN_WAY
  const int64_t multiprocessors = attribute(cudaDevAttrMultiProcessorCount, queue.device, shape);
  const int64_t steps = ceil_div(p.inner, kStageInputs);
  const Way* best = nullptr;
  int64_t least = 0;
  for (const Way& way : kWays) {
    const bool halves = way.pair == Pair::kTile;
    if (halves && steps < kCluster) continue;
    // A step's products take 8 cycles a sample, 4 of int8; a tile's beginning and end some 4000.
    const int64_t clusters =
        p.population * ceil_div(p.outputs, halves ? kTileOutputs : 2 * kTileOutputs) * ceil_div(p.batch, way.batch);
    const int64_t cycles = ceil_div(steps, halves ? kCluster : 1) * way.batch * (kType == Scalar::kInt8 ? 4 : 8) + 4000;
    const int64_t cost = ceil_div(clusters, multiprocessors / kCluster) * cycles;
    if (best == nullptr || cost < least) best = &way, least = cost;
  }
  best->run(p, queue, shape, multiprocessors);
}

template <Scalar kType>
void run_direction(const BitProduct& p, const Queue& queue, const Shape& shape) {
  p.transposed ? run_cheapest<kType, true>(p, queue, shape) : run_cheapest<kType, false>(p, queue, shape);
}

}  // namespace

void bit_linear_wgmma(const BitProduct& p, const Queue& queue) {
  const Shape shape = p.shape(p.transposed ? "bit_linear_t_wgmma" : "bit_linear_wgmma");
  const DeviceGuard guard(queue.device, shape);
  if (const int capable = capability(queue.device, shape); capable != 90) {
    throw std::runtime_error(std::string(shape.kernel) + ": device " + std::to_string(queue.device) +
                             " has compute capability " + std::to_string(capable / 10) + "." +
                             std::to_string(capable % 10) + ", 9.0 is needed; FASTBIN_CUDA_IMPL=triton serves there");
  }
  switch (p.type) {
    case Scalar::kFloat32:
      throw std::runtime_error(std::string(shape.kernel) + ": float32 is not served, only bfloat16, float16 and int8");
    case Scalar::kBFloat16:
      return run_direction<Scalar::kBFloat16>(p, queue, shape);
    case Scalar::kFloat16:
      return run_direction<Scalar::kFloat16>(p, queue, shape);
    case Scalar::kInt8:
      return run_direction<Scalar::kInt8>(p, queue, shape);
  }
}

}  // namespace fastbin::cuda
