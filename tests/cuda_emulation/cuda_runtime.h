// CUDA for the CPU, as much as fastbin's kernels use, to test their indexing and synchronisation without a GPU.
//
// Each thread of a block (of a cluster of blocks, where a launch asks for one) is a fiber. A fiber runs until it waits
// for others; which of those that can go on does so is drawn at random, and one warp of each block lags behind the
// rest, so that a missing barrier shows as a wrong result. If nobody can go on, that is a deadlock and ends the
// program.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one after the other; two blocks of a cluster use dynamic shared memory only
#define __grid_constant__

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  explicit dim3(unsigned x_) : x(x_) {}
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
struct alignas(8) uint2 {
  uint32_t x, y;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace emulation {

struct Fiber;

class Barrier {
 public:
  void arrive_and_wait(int participants);

 private:
  std::vector<Fiber*> waiting_;
};

struct Warp {
  Barrier barrier;
  uint32_t slots[2][32][8];  // two, so that one exchange's words may be read while the next one's are written
};

struct Copy {
  void* to;
  const void* from;  // null: zeros
  int bytes;
};

// What the running thread can see.
struct Thread {
  Warp* warp;
  Barrier* block_barrier;
  Barrier* cluster_barrier;
  std::vector<std::vector<uint32_t>>* shared;  // of each block of the cluster
  int block;                                   // its own, in the cluster
  int blocks;                                  // in the cluster
  std::vector<std::vector<Copy>> groups;       // copies on their way, oldest first; the last group is open
  unsigned exchanges;                          // with its warp, so far
};
extern Thread* self;

void yield();     // let the others run, in a loop that looks for something to happen
void progress();  // something has happened that such a loop may wait for
void run(unsigned blocks, unsigned threads, std::size_t shared_bytes, unsigned cluster,
         const std::function<void()>& kernel);

// Every lane gives up to eight words and then sees those of all lanes through `read`.
template <typename Read>
auto with_warp(const uint32_t* words, int count, Read read) {
  auto& slots = self->warp->slots[self->exchanges++ % 2];
  std::memcpy(slots[threadIdx.x % 32], words, sizeof(uint32_t) * static_cast<std::size_t>(count));
  self->warp->barrier.arrive_and_wait(32);
  return read(slots);
}

}  // namespace emulation

template <typename T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
T max(T a, T b) {
  return a < b ? b : a;
}

inline void __syncwarp() { emulation::self->warp->barrier.arrive_and_wait(32); }
inline void __syncthreads() { emulation::self->block_barrier->arrive_and_wait(static_cast<int>(blockDim.x)); }

template <typename T>
T __shfl_sync(unsigned, T value, int lane) {
  static_assert(sizeof(T) == 4);
  uint32_t word;
  std::memcpy(&word, &value, 4);
  word = emulation::with_warp(&word, 1, [&](auto& slots) { return slots[static_cast<unsigned>(lane) % 32][0]; });
  std::memcpy(&value, &word, 4);
  return value;
}

template <typename T>
T __shfl_xor_sync(unsigned all, T value, int mask) {
  return __shfl_sync(all, value, static_cast<int>(threadIdx.x) ^ mask);
}

inline unsigned __ballot_sync(unsigned, bool predicate) {
  const uint32_t word = predicate;
  return emulation::with_warp(&word, 1, [](auto& slots) {
    unsigned all = 0;
    for (int lane = 0; lane < 32; ++lane) all |= slots[lane][0] << lane;
    return all;
  });
}

inline bool __all_sync(unsigned mask, bool predicate) { return __ballot_sync(mask, predicate) == 0xffffffffu; }
inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline float __int_as_float(int32_t bits) { return __uint_as_float(static_cast<uint32_t>(bits)); }
inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline int __float2int_rn(float value) { return static_cast<int>(std::nearbyint(value)); }
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, unsigned bits) {
  return static_cast<uint32_t>((uint64_t{high} << 32 | low) >> bits % 32);
}
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t pick) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) word |= static_cast<uint32_t>(bytes >> 8 * (pick >> 4 * i & 7) & 0xff) << 8 * i;
  return word;
}
inline int __popc(unsigned word) { return __builtin_popcount(word); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __dmul_rn(double a, double b) { return a * b; }
template <typename T>
T __ldcs(const T* address) {
  return *address;
}
template <typename T>
void __stcs(T* address, T value) {
  *address = value;
}
// Bytes of b and a, numbered from the lowest of a, that the digits of `selector` name.
inline unsigned long long atomicAdd(unsigned long long* address, unsigned long long value) {
  const unsigned long long before = *address;
  *address += value;
  return before;
}

// ------------------------------------------------------------------------------------------------------- the runtime

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrL2CacheSize
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };
using cudaStream_t = void*;
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

extern int emulated_capability;       // times ten
extern int emulated_multiprocessors;  // so that small problems reach every way of cutting the work
extern int emulated_device;           // the current one

// What a block may have of shared memory: on an A100, on its smaller siblings, from an H100 on.
inline int emulated_shared_bytes() {
  return (emulated_capability == 80 ? 163 : emulated_capability < 90 || emulated_capability >= 120 ? 99 : 227) * 1024;
}

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid argument";
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = emulated_device, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device > 1) return cudaErrorInvalidValue;
  return emulated_device = device, cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  *value = which == cudaDevAttrMultiProcessorCount      ? emulated_multiprocessors
           : which == cudaDevAttrComputeCapabilityMajor ? emulated_capability / 10
           : which == cudaDevAttrComputeCapabilityMinor ? emulated_capability % 10
           : which == cudaDevAttrL2CacheSize            ? 40 << 20
                                                        : emulated_shared_bytes();
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int bytes) {
  return bytes <= emulated_shared_bytes() ? cudaSuccess : cudaErrorInvalidValue;
}
template <typename... Params, typename... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args... args) {
  const unsigned cluster = config->numAttrs > 0 ? config->attrs[0].val.clusterDim.x : 1;
  if (config->gridDim.x % cluster != 0) return cudaErrorInvalidValue;
  emulation::run(config->gridDim.x, config->blockDim.x, config->dynamicSmemBytes, cluster, [&] { kernel(args...); });
  return cudaSuccess;
}
