#include "cpu/memory.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastbin {

void expect_writes(void* output, int64_t bytes) {
#if defined(__linux__)
  constexpr std::uintptr_t kHugePage = std::uintptr_t{1} << 21;
  if (bytes < static_cast<int64_t>(2 * kHugePage)) return;
  const std::uintptr_t begin = (reinterpret_cast<std::uintptr_t>(output) + kHugePage - 1) / kHugePage * kHugePage;
  const std::uintptr_t end =
      (reinterpret_cast<std::uintptr_t>(output) + static_cast<std::uintptr_t>(bytes)) / kHugePage * kHugePage;
  // Advice: where it is not taken, the pages are small, and that is all.
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  static_cast<void>(output);
  static_cast<void>(bytes);
#endif
}

}  // namespace fastbin
