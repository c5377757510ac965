// bit_linear for a few samples at the speed of memory, by the binary tensor cores; compute capability 8.0 to 9.0.
//
// An H100 reads 3.35 TB/s, which is 14.5 bytes or 116 bits of w a cycle and multiprocessor (132 at 1.75 GHz). Adding x
// under a mask would be two instructions an edge of the 128 a cycle there are; a byte's sum looked up in shared memory
// is one for eight edges, but 32 random addresses hit a bank 3.5 times; decoding bits to bfloat16 for the tensor cores
// is two operations for two edges on units that do 64 a cycle. So w stays as it is and x becomes bits instead: a value
// is a 32-bit integer in units of its chunk's scale, 32 bit planes, and a plane's product with w is AND and popcount. A
// tile of eight planes against 16 rows and 256 inputs is one instruction, so a sample costs four for 4096 edges. At
// 16384 bit products a cycle (A100) that is 512 edges a cycle with one sample, 128 with four: memory is the limit up to
// there.
//
// The integers are two's complement: plane p weighs 2^p, plane 31 -2^31. A chunk of 512 inputs has its own scale, the
// power of two 2^e just above its largest value, in units of 2^(e - 31): the error of an input is at most 2^-32 of its
// chunk's largest. Counts add up exactly; only chunks are summed in float32, in a fixed order. int8 has eight planes
// and no scale, and is exact.
#include <type_traits>

#include "cuda/bit_linear.h"
#include "cuda/ptx.h"

namespace fastbin::cuda {
namespace {

constexpr unsigned kAll = 0xffffffffu;

template <Scalar kType>
__device__ __forceinline__ float load_float(const void* x, int64_t at) {
  if constexpr (kType == Scalar::kFloat32) return static_cast<const float*>(x)[at];
  const uint16_t bits = static_cast<const uint16_t*>(x)[at];
  if constexpr (kType == Scalar::kFloat16) return float_of_half(bits);
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}

// x as bit planes, a block for each chunk of a sample and a warp for each of its words.
template <Scalar kType>
__global__ void __launch_bounds__(32 * kChunkWords) bit_planes_kernel(const BitLinear p) {
  const int lane = static_cast<int>(threadIdx.x % 32), word = static_cast<int>(threadIdx.x / 32);
  const int64_t sample = blockIdx.x % p.batch, member_chunk = blockIdx.x / p.batch;
  const int64_t member = member_chunk / p.chunks(), chunk = member_chunk % p.chunks();
  const int64_t input = chunk * (32 * kChunkWords) + threadIdx.x;
  const int64_t at = (member * p.batch + sample) * p.inputs + input;
  const bool inside = input < p.inputs;

  int32_t value;
  if constexpr (kType == Scalar::kInt8) {
    value = inside ? static_cast<const signed char*>(p.x)[at] : 0;
  } else {
    __shared__ float largest_of[kChunkWords];
    const float real = inside ? load_float<kType>(p.x, at) : 0.0f;
    float largest = fabsf(real);
    if (!(largest <= 3.4028235e38f)) largest = __int_as_float(0x7f800000);  // fmaxf would lose a NaN
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) largest = fmaxf(largest, __shfl_xor_sync(kAll, largest, mask));
    if (lane == 0) largest_of[word] = largest;
    __syncthreads();
    largest = largest_of[lane % kChunkWords];
#pragma unroll
    for (int mask = kChunkWords / 2; mask > 0; mask /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(kAll, largest, mask));
    }
    const bool finite = largest <= 3.4028235e38f;
    // A unit of 2^-149 holds every float32 below 2^-118.
    const int exponent = finite && largest > 0x1p-118f ? ilogbf(largest) + 1 : -118;
    value = finite ? __float2int_rn(ldexpf(real, 31 - exponent)) : 0;
    if (threadIdx.x == 0) {
      const float unit = finite ? ldexpf(1.0f, exponent - 31) : __int_as_float(0x7fc00000);
      p.workspace[p.plane_words() + blockIdx.x] = __float_as_uint(unit);
    }
  }

  constexpr int kPlanes = planes_of(kType);
  uint32_t mine = 0;
#pragma unroll
  for (int plane = 0; plane < kPlanes; ++plane) {
    const uint32_t bits = __ballot_sync(kAll, (value >> plane & 1) != 0);
    if (lane == plane) mine = bits;
  }
  if (lane < kPlanes) {
    p.workspace[(member_chunk * p.columns() + sample * kPlanes + lane) * kChunkWords + word] = mine;
  }
}

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kPanelWords = 16 * 1024;  // of bit planes in shared memory: 64 KiB
constexpr int kAhead = 2;               // chunks whose words are on their way while as many are multiplied

// A block's 8 warps are 8 / splits groups of 16 rows each; the chunks of a group are dealt out among `splits` warps.
struct Cut {
  int splits;
  int64_t row_blocks;    // of a member
  int64_t panel_chunks;  // whose planes are in shared memory at a time: a multiple of kAhead * splits
};

// Four words of a row from word `first` on, zeros past its end.
template <bool kVector>
__device__ __forceinline__ uint4 load_words(const uint32_t* row, int64_t first, int64_t words) {
  if constexpr (kVector) {
    return first < words ? __ldcs(reinterpret_cast<const uint4*>(row + first)) : make_uint4(0, 0, 0, 0);
  } else {
    uint32_t w[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) w[i] = first + i < words ? __ldcs(row + first + i) : 0;
    return make_uint4(w[0], w[1], w[2], w[3]);
  }
}

// Sums `v` over the quad of lanes; lane q of it gets the sum of v[q].
__device__ __forceinline__ int32_t scatter_over_quad(const int32_t (&v)[4]) {
  const bool upper = (threadIdx.x & 2) != 0, odd = (threadIdx.x & 1) != 0;
  const int32_t first = (upper ? v[2] : v[0]) + __shfl_xor_sync(kAll, upper ? v[0] : v[2], 2);
  const int32_t second = (upper ? v[3] : v[1]) + __shfl_xor_sync(kAll, upper ? v[1] : v[3], 2);
  return (odd ? second : first) + __shfl_xor_sync(kAll, odd ? first : second, 1);
}

__device__ __forceinline__ void store(const BitLinear& p, int64_t at, float value) {
  if (p.type == Scalar::kFloat32) {
    static_cast<float*>(p.y)[at] = value;
  } else {
    static_cast<uint16_t*>(p.y)[at] = p.type == Scalar::kFloat16 ? half_of_float(value) : bfloat16_of_float(value);
  }
}

__device__ __forceinline__ void store(const BitLinear& p, int64_t at, int32_t value) {
  static_cast<int32_t*>(p.y)[at] = value;
}

// Sum is float, or int32_t for int8. kTiles: tiles of eight bit planes, of all samples; those past the batch are
// skipped. kVector: rows of w are whole 16-byte chunks and start on 16 bytes.
template <typename Sum, int kTiles, bool kVector>
__global__ void __launch_bounds__(kThreads, kTiles <= 4 ? 2 : 1)
    bit_linear_vector_kernel(const BitLinear p, const Cut cut) {
  constexpr bool kExact = std::is_same_v<Sum, int32_t>;
  constexpr int kSamples = kExact ? kTiles : kTiles / 4;
  __shared__ Sum partial[kWarps][kSamples][16];
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32), q = lane % 4;
  const int split = warp % cut.splits, group = warp / cut.splits, groups = kWarps / cut.splits;
  const int64_t member = blockIdx.x / cut.row_blocks;
  const int64_t first_row = (blockIdx.x % cut.row_blocks * groups + group) * 16;
  const int64_t words = p.words(), chunks = p.chunks(), row = first_row + lane / 4;
  const int tiles = static_cast<int>(p.columns() / 8);
  const uint32_t* upper_row = row < p.rows ? p.w + (member * p.rows + row) * words : nullptr;
  const uint32_t* lower_row = row + 8 < p.rows ? p.w + (member * p.rows + row + 8) * words : nullptr;
  const uint32_t* planes = p.workspace + member * chunks * p.columns() * kChunkWords;
  const uint32_t* units = p.workspace + p.plane_words() + member * chunks * p.batch;
  uint32_t* panel = dynamic_shared();
  const int64_t chunk_words = p.columns() * kChunkWords;

  // Lane (g, q) of a fragment takes words 4 q .. 4 q + 3 of rows g and g + 8, two of them for each of two products:
  // which bits meet does not matter as long as the planes, whose fragments are their words in order, do it likewise.
  const auto load = [&](int64_t chunk, uint4(&out)[2]) {
    const int64_t first = chunk * kChunkWords + 4 * q;
    const uint4 none = make_uint4(0, 0, 0, 0);
    out[0] = chunk < chunks && upper_row != nullptr ? load_words<kVector>(upper_row, first, words) : none;
    out[1] = chunk < chunks && lower_row != nullptr ? load_words<kVector>(lower_row, first, words) : none;
  };

  int32_t counts[kTiles][4] = {};
  Sum sums[kSamples] = {};
  uint4 ahead[kAhead][2];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) load(split + i * cut.splits, ahead[i]);

  // A warp's chunks are split, split + splits, ... A panel is a whole number of rounds of kAhead of them, so that what
  // was loaded ahead at its end is what the next one begins with.
  for (int64_t first_chunk = 0; first_chunk < chunks; first_chunk += cut.panel_chunks) {
    const int64_t left = chunks - first_chunk;
    const int64_t count = left < cut.panel_chunks ? left : cut.panel_chunks;
    __syncthreads();  // the panel before is read by none
    for (int64_t i = threadIdx.x; i < count * chunk_words / 4; i += kThreads) {
      copy_async<16>(panel + 4 * i, planes + first_chunk * chunk_words + 4 * i, true);
    }
    commit_copies();
    wait_copies<0>();
    __syncthreads();

    for (int64_t c = split; c < count; c += kAhead * cut.splits) {
      uint4 now[kAhead][2];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        now[i][0] = ahead[i][0];
        now[i][1] = ahead[i][1];
        load(first_chunk + c + (kAhead + i) * cut.splits, ahead[i]);
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int64_t chunk = c + i * cut.splits;
        if (chunk >= count) break;
        const uint32_t first[4] = {now[i][0].x, now[i][1].x, now[i][0].y, now[i][1].y};
        const uint32_t second[4] = {now[i][0].z, now[i][1].z, now[i][0].w, now[i][1].w};
        const uint4* fragments = reinterpret_cast<const uint4*>(panel + chunk * chunk_words) + lane;
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          if (t >= tiles) break;
          const uint4 fragment = fragments[t * 32];
          and_popcount_mma(counts[t], first, fragment.x, fragment.y);
          and_popcount_mma(counts[t], second, fragment.z, fragment.w);
        }
        if constexpr (!kExact) {
          // counts[4 s + t][..] of planes 8 t + 2 q, 8 t + 2 q + 1 of sample s. The lower and the upper 16 planes are
          // summed apart: at most 512 * 2^16 each, in an int32.
#pragma unroll
          for (int s = 0; s < kSamples; ++s) {
            if (4 * s >= tiles) break;
            int32_t halves[4];  // upper and lower planes of row g, then of row g + 8
#pragma unroll
            for (int r = 0; r < 2; ++r) {
              const auto pair = [&](int t, int sign) {
                return counts[4 * s + t][2 * r] + sign * 2 * counts[4 * s + t][2 * r + 1];
              };
              const int sign = q == 3 ? -1 : 1;  // of plane 31
              halves[2 * r] = (pair(2, 1) + 256 * pair(3, sign)) * (1 << 2 * q);
              halves[2 * r + 1] = (pair(0, 1) + 256 * pair(1, 1)) * (1 << 2 * q);
            }
            const float unit = __uint_as_float(units[(first_chunk + chunk) * p.batch + s]);
            const float sum = static_cast<float>(scatter_over_quad(halves));
            sums[s] = fmaf(sum, q % 2 == 0 ? 65536.0f * unit : unit, sums[s]);
#pragma unroll
            for (int t = 4 * s; t < 4 * s + 4; ++t) counts[t][0] = counts[t][1] = counts[t][2] = counts[t][3] = 0;
          }
        }
      }
    }
  }

#pragma unroll
  for (int s = 0; s < kSamples; ++s) {
    if constexpr (kExact) {
      int32_t rows[4] = {0, 0, 0, 0};
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int sign = q == 3 ? -1 : 1;  // of plane 7
        rows[2 * r] = (counts[s][2 * r] + sign * 2 * counts[s][2 * r + 1]) * (1 << 2 * q);
      }
      sums[s] = scatter_over_quad(rows);
    }
    sums[s] += __shfl_xor_sync(kAll, sums[s], 1);
    if (q % 2 == 0) partial[warp][s][lane / 4 + 4 * q] = sums[s];
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < groups * 16 * static_cast<int>(p.batch); i += kThreads) {
    const int local = i % (groups * 16), sample = i / (groups * 16);
    const int64_t output = blockIdx.x % cut.row_blocks * (groups * 16) + local;
    if (output >= p.rows) continue;
    Sum sum = 0;
    for (int k = 0; k < cut.splits; ++k) sum += partial[local / 16 * cut.splits + k][sample][local % 16];
    store(p, (member * p.batch + sample) * p.rows + output, sum);
  }
}

template <Scalar kType>
void run(const BitLinear& p, const Queue& queue, const Shape& shape) {
  using Sum = std::conditional_t<kType == Scalar::kInt8, int32_t, float>;
  launch(shape, bit_planes_kernel<kType>, p.population * p.chunks() * p.batch, 32 * kChunkWords, 0, queue, p);

  // As many rows to a block as leave every multiprocessor a block: the more rows, the fewer times the planes are read.
  const int64_t tiles = p.population * ((p.rows + 15) / 16);
  const int64_t multiprocessors = attribute(cudaDevAttrMultiProcessorCount, queue.device, shape);
  const int64_t held = kPanelWords / (p.columns() * kChunkWords);
  Cut cut{1, 0, 0};
  while (2 * cut.splits <= kWarps && 2 * cut.splits * kAhead <= held && tiles * cut.splits < kWarps * multiprocessors) {
    cut.splits *= 2;
  }
  cut.panel_chunks = held - held % (kAhead * cut.splits);
  const int64_t block_rows = 16 * (kWarps / cut.splits);
  cut.row_blocks = (p.rows + block_rows - 1) / block_rows;

  const bool vector = p.words() % 4 == 0 && reinterpret_cast<uintptr_t>(p.w) % 16 == 0;
  const bool few = p.columns() <= 32;
  const auto kernel =
      few ? (vector ? bit_linear_vector_kernel<Sum, 4, true> : bit_linear_vector_kernel<Sum, 4, false>)
          : (vector ? bit_linear_vector_kernel<Sum, 16, true> : bit_linear_vector_kernel<Sum, 16, false>);
  launch(shape, kernel, p.population * cut.row_blocks, kThreads, sizeof(uint32_t) * kPanelWords, queue, p, cut);
}

}  // namespace

void bit_linear_vector(const BitLinear& p, const Queue& queue) {
  const Shape shape = p.shape("bit_linear_vector");
  const DeviceGuard guard(queue.device, shape);
  if (capability(queue.device, shape) >= 100) {
    throw std::runtime_error("bit_linear_vector: device " + std::to_string(queue.device) +
                             " has no binary tensor cores; FASTBIN_CUDA_IMPL=triton runs bit_linear there");
  }
  switch (p.type) {
    case Scalar::kFloat32:
      return run<Scalar::kFloat32>(p, queue, shape);
    case Scalar::kBFloat16:
      return run<Scalar::kBFloat16>(p, queue, shape);
    case Scalar::kFloat16:
      return run<Scalar::kFloat16>(p, queue, shape);
    case Scalar::kInt8:
      return run<Scalar::kInt8>(p, queue, shape);
  }
}

}  // namespace fastbin::cuda
