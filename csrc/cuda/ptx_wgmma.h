// The instructions of compute capability 9.0 that bit_linear_wgmma.cu and mask_grad_update_wgmma.cu use beyond
// ptx_hopper.h, each as a function; see ptx.h. PTX ISA 9.0, sections "wgmma", "setmaxnreg", "cp.async.mbarrier.arrive",
// "movmatrix" and "prmt".
#pragma once

#include <type_traits>

#include "cuda/bit_linear.h"
#include "cuda/ptx_hopper.h"

namespace fastbin::cuda {

// ------------------------------------------------------------------------------------------------- threads and
// barriers

// The block's index in its cluster.
__device__ __forceinline__ unsigned cluster_rank() {
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// A barrier of all threads of the cluster, in two halves. What one sees of another block's shared memory afterwards are
// only its mbarriers, after barrier_init_done.
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// Arrives at the barrier that lies at the place of `barrier` in block `block` of the cluster; for a thread that has
// only read, or waited for products, and has nothing for others to see.
__device__ __forceinline__ void reader_arrive(uint64_t* barrier, unsigned block) {
  asm volatile(
      "{\n\t"
      ".reg .b32 there;\n\t"
      "mapa.shared::cluster.u32 there, %0, %1;\n\t"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n\t"
      "}" ::"r"(shared_address(barrier)),
      "r"(block)
      : "memory");
}

// barrier_wait that sees what other blocks have sent; it empties L1.
__device__ __forceinline__ void cluster_barrier_wait(uint64_t* barrier, unsigned parity) {
  asm volatile(
      "{\n\t"
      ".reg .pred ended;\n\t"
      "again:\n\t"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 ended, [%0], %1;\n\t"
      "@!ended bra again;\n\t"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// -------------------------------------------------------------------------------------------------------------- copies

// copy_box to every block of the cluster whose bit in `blocks` is set; its bytes arrive at the barrier that lies at the
// place of `barrier` in each of them.
__device__ __forceinline__ void copy_box_to(uint32_t* shared, const TensorMap& map, int word, int row, int member,
                                            uint64_t* barrier, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared_address(shared)),
      "l"(&map), "r"(shared_address(barrier)), "r"(word), "r"(row), "r"(member), "h"(blocks)
      : "memory");
}

// copy_async through the L1 cache: for what lies in a sector with what is copied next.
template <int kBytes>
__device__ __forceinline__ void copy_async_cached(uint32_t* shared, const uint32_t* global, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(global), "n"(kBytes),
               "r"(valid ? kBytes : 0)
               : "memory");
}

// Arrives at the barrier once all copies that this thread has started are there.
__device__ __forceinline__ void arrive_after_copies(uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Sends four values to the place of `shared`, on 16 bytes, in block `block` of the cluster; these bytes arrive at the
// barrier that lies there at the place of `barrier`.
template <typename T>
__device__ __forceinline__ void send(uint32_t* shared, const T (&values)[4], uint64_t* barrier, unsigned block) {
  uint32_t words[4];
  memcpy(words, values, 16);
  asm volatile(
      "{\n\t"
      ".reg .b32 there, its_barrier;\n\t"
      "mapa.shared::cluster.u32 there, %0, %2;\n\t"
      "mapa.shared::cluster.u32 its_barrier, %1, %2;\n\t"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [there], {%3, %4, %5, %6}, [its_barrier];\n\t"
      "}" ::"r"(shared_address(shared)),
      "r"(shared_address(barrier)), "r"(block), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
      : "memory");
}

// ----------------------------------------------------------------------------------------------------------------
// bytes

// Byte i of the result is byte s of a (0 to 3) and b (4 to 7), s bits 4 i .. 4 i + 2 of `select`; or its sign bit eight
// times if bit 4 i + 3 is set.
__device__ __forceinline__ uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t select) {
  uint32_t bytes;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(a), "r"(b), "r"(select));
  return bytes;
}

// `first` in the lower half.
__device__ __forceinline__ uint32_t bfloat16s_of_floats(float first, float second) {
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
  return bits;
}
__device__ __forceinline__ uint32_t halves_of_floats(float first, float second) {
  uint32_t bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
  return bits;
}

// Transposes an 8 x 8 matrix of 16-bit values: lane l has those of row l / 4, columns 2 (l % 4) and one more.
__device__ __forceinline__ uint32_t transpose_matrix(uint32_t pair) {
  uint32_t transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(pair));
  return transposed;
}

// -------------------------------------------------------------------------------------------------------------
// products

// The descriptor of a matrix in shared memory, rows of 128 bytes in the 128-byte swizzle: address / 16 in bits 0..13,
// the 1024 bytes / 16 from one eight rows to the next in bits 32..45, and 1 for the swizzle in bits 62..63. Bits 16..29
// have no meaning for it. 32 bytes further along the rows are 2 more in the address.
__device__ __forceinline__ uint64_t swizzled_rows(const uint32_t* shared) {
  return uint64_t{1} << 62 | uint64_t{1024 / 16} << 32 | uint64_t{1} << 16 | (shared_address(shared) & 0x3ffffu) / 16;
}

// Has a product's operand in its registers from here on: else the compiler makes it between the products of a group,
// and then lets them wait for each other.
template <int kProducts>
__device__ __forceinline__ void settle(uint32_t (&a)[kProducts][4]) {
#pragma unroll
  for (int i = 0; i < kProducts; ++i) asm volatile("" : "+r"(a[i][0]), "+r"(a[i][1]), "+r"(a[i][2]), "+r"(a[i][3]));
}

#define FASTBIN_4(c, t) c(d[t][0]), c(d[t][1]), c(d[t][2]), c(d[t][3])
#define FASTBIN_32(c, t)                                                                               \
  FASTBIN_4(c, t), FASTBIN_4(c, t + 1), FASTBIN_4(c, t + 2), FASTBIN_4(c, t + 3), FASTBIN_4(c, t + 4), \
      FASTBIN_4(c, t + 5), FASTBIN_4(c, t + 6), FASTBIN_4(c, t + 7)
#define FASTBIN_64(c, t) FASTBIN_32(c, t), FASTBIN_32(c, t + 8)
#define FASTBIN_128(c, t) FASTBIN_64(c, t), FASTBIN_64(c, t + 16)
#define FASTBIN_PLACES_32                                                  \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define FASTBIN_PLACES_64                                                              \
  FASTBIN_PLACES_32                                                                    \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define FASTBIN_PLACES_128                                                                       \
  FASTBIN_PLACES_64                                                                              \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "           \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "             \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
// A product with so many registers of sums, in constraint c; its operands are `a`, of the constraints that follow, a
// descriptor b and the predicate, at those places; `rest` is what stands behind the predicate.
#define FASTBIN_WGMMA(sums, c, shape_and_types, factors, when, rest, ...)                                              \
  asm volatile("{\n\t.reg .pred accumulate;\n\tsetp.ne.b32 accumulate, " when                                          \
               ", 0;\n\t"                                                                                              \
               "wgmma.mma_async.sync.aligned." shape_and_types " {" FASTBIN_PLACES_##sums "}, " factors                \
                                                                                          ", accumulate" rest ";\n\t}" \
               : FASTBIN_##sums(c, 0)                                                                                  \
               : __VA_ARGS__, "l"(b), "r"(static_cast<int>(accumulate)))

// Of a in registers.
#define FASTBIN_REGISTERS "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])
#define FASTBIN_WGMMA_OF(c, types, rest)                                                                \
  if constexpr (kTiles == 8)                                                                            \
    FASTBIN_WGMMA(32, c, "m64n64" types, "{%32, %33, %34, %35}, %36", "%37", rest, FASTBIN_REGISTERS);  \
  else if constexpr (kTiles == 16)                                                                      \
    FASTBIN_WGMMA(64, c, "m64n128" types, "{%64, %65, %66, %67}, %68", "%69", rest, FASTBIN_REGISTERS); \
  else                                                                                                  \
    FASTBIN_WGMMA(128, c, "m64n256" types, "{%128, %129, %130, %131}, %132", "%133", rest, FASTBIN_REGISTERS)

// d = (accumulate ? d : 0) + a b for 64 rows of a and the 8 * kTiles rows of b that a descriptor names, over 32 bytes
// of each: 16 values of 16-bit floats, or 32 of int8. Warp w of the warpgroup has rows 16 w .. 16 w + 15 of a; with g =
// lane / 4 and q = lane % 4, a[0] is values 2 q, 2 q + 1 (int8: 4 q .. 4 q + 3) of row g, a[1] those of row g + 8, a[2]
// and a[3] are the same rows 8 (int8: 16) values further on. d[t] is rows g, g, g + 8, g + 8 of a with rows 8 t + 2 q,
// + 1, + 0, + 1 of b. Asynchronous: a is read and d is there by wait_products.
template <Scalar kType, int kTiles, typename Sum>
__device__ __forceinline__ void multiply_wgmma(Sum (&d)[kTiles][4], const uint32_t (&a)[4], uint64_t b,
                                               bool accumulate) {
  static_assert(kTiles == 8 || kTiles == 16 || kTiles == 32);
  if constexpr (kType == Scalar::kInt8) {
    FASTBIN_WGMMA_OF("+r", "k32.s32.s8.s8", "");
  } else if constexpr (kType == Scalar::kFloat16) {
    FASTBIN_WGMMA_OF("+f", "k16.f32.f16.f16", ", 1, 1, 0");  // neither factor negated, rows of b as they lie
  } else {
    FASTBIN_WGMMA_OF("+f", "k16.f32.bf16.bf16", ", 1, 1, 0");
  }
}

// d = (accumulate ? d : 0) + a b for 64 x 16 numbers of a and 16 x 8 kTiles of b in shared memory, by their
// descriptors, both with the index that is not summed over contiguous: float16 if kHalf, else bfloat16. Warp w of the
// warpgroup has rows 16 w .. 16 w + 15; in them d[t] is what multiply_add has for columns 8 t .. 8 t + 7. Asynchronous:
// d is there after wait_products.
template <bool kHalf, int kTiles>
__device__ __forceinline__ void multiply_wgmma_columns(float (&d)[kTiles][4], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(kTiles == 8 || kTiles == 16);
#define FASTBIN_WGMMA_COLUMNS(types)                                                            \
  if constexpr (kTiles == 8)                                                                    \
    FASTBIN_WGMMA(32, "+f", "m64n64k16.f32." types, "%32, %33", "%34", ", 1, 1, 1, 1", "l"(a)); \
  else                                                                                          \
    FASTBIN_WGMMA(64, "+f", "m64n128k16.f32." types, "%64, %65", "%66", ", 1, 1, 1, 1", "l"(a))
  if constexpr (kHalf) {
    FASTBIN_WGMMA_COLUMNS("f16.f16");
  } else {
    FASTBIN_WGMMA_COLUMNS("bf16.bf16");
  }
#undef FASTBIN_WGMMA_COLUMNS
}

#undef FASTBIN_4
#undef FASTBIN_32
#undef FASTBIN_64
#undef FASTBIN_128
#undef FASTBIN_PLACES_32
#undef FASTBIN_PLACES_64
#undef FASTBIN_PLACES_128
#undef FASTBIN_WGMMA
#undef FASTBIN_WGMMA_OF
#undef FASTBIN_REGISTERS

}  // namespace fastbin::cuda
