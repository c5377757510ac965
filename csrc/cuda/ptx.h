// The PTX instructions that the kernels use, each as a function. tests/cuda_emulation has a header of the same name and
// functions for the CPU, found before this one, so that the kernels themselves hold no assembler.
// Layouts of fragments and descriptors: PTX ISA 9.0, sections "mma.m16n8k256", "ldmatrix", "wgmma" and "cp.async".
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fastbin::cuda {

// The block's dynamic shared memory, aligned for the 128-byte swizzle.
__device__ __forceinline__ uint32_t* dynamic_shared() {
  extern __shared__ __align__(1024) uint32_t fastbin_dynamic_shared[];
  return fastbin_dynamic_shared;
}

__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Copies kBytes (4 or 16, both addresses aligned to it) to shared memory some time before wait_copies; zeros if !valid,
// and then `global` is not read.
template <int kBytes>
__device__ __forceinline__ void copy_async(uint32_t* shared, const uint32_t* global, bool valid) {
  if constexpr (kBytes == 16) {  // past L1: a tile is read from it once
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid ? 4 : 0)
                 : "memory");
  }
}

// What becomes of copied bytes in L2: they are the first to leave, or leave as others do.
__device__ __forceinline__ uint64_t cache_policy(bool leaves_first) {
  uint64_t first, normal;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(first));
  asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(normal));
  return leaves_first ? first : normal;
}

// copy_async under a cache policy.
template <int kBytes>
__device__ __forceinline__ void copy_async(uint32_t* shared, const uint32_t* global, bool valid, uint64_t policy) {
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(shared_address(shared)),
                 "l"(global), "r"(valid ? 16 : 0), "l"(policy)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global.L2::cache_hint [%0], [%1], 4, %2, %3;" ::"r"(shared_address(shared)),
                 "l"(global), "r"(valid ? 4 : 0), "l"(policy)
                 : "memory");
  }
}

// Ends a group of this thread's copies.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for this thread's copies, but for the last kPending groups.
template <int kPending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four 8 x 16-byte matrices: lane l gives the address of row l % 8 of matrix l / 8, and gets word l % 4 of row l / 4 of
// matrix i in out[i].
__device__ __forceinline__ void load_matrices(uint32_t (&out)[4], const uint32_t* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(shared_row))
               : "memory");
}

// The same of 16-bit numbers, each matrix transposed: lane l gets numbers (2 (l % 4), l / 4) and (2 (l % 4) + 1, l /
// 4), by (row, column), of matrix i in out[i].
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&out)[4], const uint32_t* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(shared_row))
               : "memory");
}

// d += a b for 16 x 16 numbers of a and 16 x 8 of b: float16 if kHalf, else bfloat16. With g = lane / 4 and q = lane %
// 4: a[0] holds (g, 2 q) and (g, 2 q + 1), by (row, column), a[1] those of row g + 8, a[2] and a[3] those of columns +
// 8; b0 (2 q, g) and (2 q + 1, g), b1 those of rows + 8; d[0], d[1] (g, 2 q) and (g, 2 q + 1); d[2], d[3] row g + 8.
template <bool kHalf>
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#define FASTBIN_MULTIPLY_ADD(type)                                                    \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                 \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
  if constexpr (kHalf) {
    FASTBIN_MULTIPLY_ADD("f16");
  } else {
    FASTBIN_MULTIPLY_ADD("bf16");
  }
#undef FASTBIN_MULTIPLY_ADD
}

// 1 / x and 1 / sqrt(x) to within about an ulp.
__device__ __forceinline__ float approximate_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float approximate_inverse_root(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// d += popcount(a AND b) over 256 bits, for 16 rows of a and 8 columns of b. With g = lane / 4 and q = lane % 4:
// a[0] row g, bits 32 q ..; a[1] row g + 8, the same bits; a[2], a[3] the same rows, bits 128 + 32 q ..;
// b0 column g, bits 32 q ..; b1 bits 128 + 32 q ..; d[0], d[1] row g, columns 2 q, 2 q + 1; d[2], d[3] row g + 8.
__device__ __forceinline__ void and_popcount_mma(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d += a b over 32 values of k, unsigned bytes of a and signed ones of b, four to a word: k 4 q .. 4 q + 3 in a[0],
// a[1] and b0, 4 q + 16 .. 4 q + 19 in a[2], a[3] and b1; rows, columns and d as and_popcount_mma has them.
__device__ __forceinline__ void byte_mma(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Words that no kernel writes meanwhile; asked for here, before what follows.
template <int kWords>
__device__ __forceinline__ void load_words(uint32_t (&out)[kWords], const void* from) {
  if constexpr (kWords == 1) asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(out[0]) : "l"(from));
  if constexpr (kWords == 2) {
    asm volatile("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(out[0]), "=r"(out[1]) : "l"(from));
  }
  if constexpr (kWords == 4) {
    asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "l"(from));
  }
}

// A barrier of all threads of a cluster of blocks, by which their shared memory is seen; of capability 9.0.
__device__ __forceinline__ void blocks_sync() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
#endif
}

// The word that lies at the place of `shared` in block `block` of the cluster.
__device__ __forceinline__ uint32_t load_from_block(const void* shared, unsigned block) {
  uint32_t value = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n\t"
      ".reg .b32 there;\n\t"
      "mapa.shared::cluster.u32 there, %1, %2;\n\t"
      "ld.shared::cluster.u32 %0, [there];\n\t"
      "}"
      : "=r"(value)
      : "r"(shared_address(shared)), "r"(block)
      : "memory");
#endif
  return value;
}

__device__ __forceinline__ float float_of_half(uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

__device__ __forceinline__ uint16_t half_of_float(float value) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

__device__ __forceinline__ uint16_t bfloat16_of_float(float value) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

}  // namespace fastbin::cuda
