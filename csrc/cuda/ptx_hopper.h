// The instructions of compute capability 9.0 that more than one kernel uses, and bit_matmul_wgmma.cu's product, each as
// a function; see ptx.h.
// PTX ISA 9.0, sections "mbarrier", "cp.async.bulk.tensor" and "wgmma".
#pragma once

#include "cuda/ptx.h"
#include "cuda/tensor_map.h"

namespace fastbin::cuda {

// From here on a thread has kRegisters registers, more or fewer than it was launched with: what one warpgroup gives
// back another takes. All warps of a warpgroup call it.
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ------------------------------------------------------------------------------------------------------- mbarriers
// A phase of an mbarrier ends when all its arrivals have come and as many bytes as were announced.

__device__ __forceinline__ void barrier_init(uint64_t* barrier, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// Makes barrier_init seen by the copy engine.
__device__ __forceinline__ void barrier_init_done() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Arrives, and announces `bytes` of copies.
__device__ __forceinline__ void barrier_expect(uint64_t* barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// Arrives. Within the block: a release to a cluster waits until all this thread's stores have reached L2.
__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Waits until the phase of this parity (0 for the first) has ended. An acquire from a cluster would empty L1.
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, unsigned parity) {
  asm volatile(
      "{\n\t"
      ".reg .pred ended;\n\t"
      "again:\n\t"
      "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 ended, [%0], %1;\n\t"
      "@!ended bra again;\n\t"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// ------------------------------------------------------------------------------------------------------------- copies

// Starts the copy of the box at (word, row, member) to `shared`, on 1024 bytes; its bytes arrive at `barrier`.
__device__ __forceinline__ void copy_box(uint32_t* shared, const TensorMap& map, int word, int row, int member,
                                         uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(shared)),
      "l"(&map), "r"(shared_address(barrier)), "r"(word), "r"(row), "r"(member)
      : "memory");
}

// ----------------------------------------------------------------------------------------------------------- products

// To be called before the first product, and after other instructions have written the sums' registers.
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits for this warpgroup's products, but for the last kPending groups.
template <int kPending>
__device__ __forceinline__ void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// d = (accumulate ? d : 0) + popcount(a AND b) over 256 bits, for 64 rows of a and 256 of b in shared memory, by their
// descriptors. Warp w of the warpgroup has rows 16 w .. 16 w + 15; in them d[t] is what and_popcount_mma has for
// columns 8 t .. 8 t + 7. Asynchronous: d is there after wait_products.
__device__ __forceinline__ void and_popcount_wgmma(int32_t (&d)[32][4], uint64_t a, uint64_t b, bool accumulate) {
#define FASTBIN_FOUR(t) "+r"(d[t][0]), "+r"(d[t][1]), "+r"(d[t][2]), "+r"(d[t][3])
  asm volatile(
      "{\n\t.reg .pred accumulate;\n\tsetp.ne.b32 accumulate, %130, 0;\n\t"
      "wgmma.mma_async.sync.aligned.m64n256k256.s32.b1.b1.and.popc "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
      "%128, %129, accumulate;\n\t}"
      : FASTBIN_FOUR(0), FASTBIN_FOUR(1), FASTBIN_FOUR(2), FASTBIN_FOUR(3), FASTBIN_FOUR(4), FASTBIN_FOUR(5),
        FASTBIN_FOUR(6), FASTBIN_FOUR(7), FASTBIN_FOUR(8), FASTBIN_FOUR(9), FASTBIN_FOUR(10), FASTBIN_FOUR(11),
        FASTBIN_FOUR(12), FASTBIN_FOUR(13), FASTBIN_FOUR(14), FASTBIN_FOUR(15), FASTBIN_FOUR(16), FASTBIN_FOUR(17),
        FASTBIN_FOUR(18), FASTBIN_FOUR(19), FASTBIN_FOUR(20), FASTBIN_FOUR(21), FASTBIN_FOUR(22), FASTBIN_FOUR(23),
        FASTBIN_FOUR(24), FASTBIN_FOUR(25), FASTBIN_FOUR(26), FASTBIN_FOUR(27), FASTBIN_FOUR(28), FASTBIN_FOUR(29),
        FASTBIN_FOUR(30), FASTBIN_FOUR(31)
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));
#undef FASTBIN_FOUR
}

// Makes what this thread has written to shared memory seen by the products that follow a barrier.
__device__ __forceinline__ void fence_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

}  // namespace fastbin::cuda
