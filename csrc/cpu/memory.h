// Advice to the operating system on large outputs.
#pragma once

#include <cstdint>

namespace fastbin {

// Asks for huge pages under an output that is about to be written. An allocator hands out large blocks as fresh memory,
// and their page faults, 8192 for 32 MiB at 4 KiB each, cost more than many a kernel. Does nothing below 4 MiB.
void expect_writes(void* output, int64_t bytes);

}  // namespace fastbin
