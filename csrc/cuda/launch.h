// What every launcher needs: the device and stream, errors that name the kernel and the shape, and the launch itself.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace fastbin::cuda {

// Where to run: a device by its index, and a stream of it (null for the default one).
struct Queue {
  int device;
  cudaStream_t stream;
};

// The product that is run, to be named in an error.
struct Shape {
  const char* kernel;
  int64_t population, rows_a, rows_b, words;
};

inline void check(cudaError_t error, const Shape& shape) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // forget it: the next call is not to blame
  throw std::runtime_error(std::string(shape.kernel) + " on " + std::to_string(shape.population) + " x [" +
                           std::to_string(shape.rows_a) + ", " + std::to_string(shape.rows_b) + ", " +
                           std::to_string(shape.words) + " words]: " + cudaGetErrorString(error) + " (CUDA error " +
                           std::to_string(static_cast<int>(error)) + ")");
}

// Makes a device current, and afterwards the one that was.
class DeviceGuard {
 public:
  DeviceGuard(int device, const Shape& shape) {
    check(cudaGetDevice(&before_), shape);
    changed_ = before_ != device;
    if (changed_) check(cudaSetDevice(device), shape);
  }
  ~DeviceGuard() {
    if (changed_) (void)cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

inline int attribute(cudaDeviceAttr which, int device, const Shape& shape) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), shape);
  return value;
}

// Compute capability times ten, 80 on an A100 and 90 on an H100; throws below 80.
inline int capability(int device, const Shape& shape) {
  const int capable = 10 * attribute(cudaDevAttrComputeCapabilityMajor, device, shape) +
                      attribute(cudaDevAttrComputeCapabilityMinor, device, shape);
  if (capable >= 80) return capable;
  throw std::runtime_error(std::string(shape.kernel) + ": device " + std::to_string(device) +
                           " has compute capability " + std::to_string(capable / 10) + "." +
                           std::to_string(capable % 10) + ", 8.0 is needed");
}

// One launch of `blocks` blocks, in clusters of `cluster`.
template <typename... Params, typename... Args>
void launch_clusters(const Shape& shape, void (*kernel)(Params...), int64_t blocks, unsigned threads,
                     std::size_t shared_bytes, unsigned cluster, const Queue& queue, Args... args) {
  if (blocks > INT32_MAX) {
    throw std::runtime_error(std::string(shape.kernel) + ": " + std::to_string(blocks) +
                             " blocks are more than a launch can have (2147483647)");
  }
  if (shared_bytes > 48 * 1024) {  // what a kernel may have unasked
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
          shape);
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = queue.stream;
  cudaLaunchAttribute in_clusters{};
  in_clusters.id = cudaLaunchAttributeClusterDimension;
  in_clusters.val.clusterDim.x = cluster;
  in_clusters.val.clusterDim.y = in_clusters.val.clusterDim.z = 1;
  config.attrs = &in_clusters;
  config.numAttrs = cluster > 1 ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, args...), shape);
}

// One launch of `blocks` blocks.
template <typename... Params, typename... Args>
void launch(const Shape& shape, void (*kernel)(Params...), int64_t blocks, unsigned threads, std::size_t shared_bytes,
            const Queue& queue, Args... args) {
  launch_clusters(shape, kernel, blocks, threads, shared_bytes, 1, queue, args...);
}

}  // namespace fastbin::cuda
