// Threads for the drivers. No kernel starts a thread of its own.
#pragma once

#include <cstdint>
#include <functional>

namespace fastbin {

// Runs task(i) for every i in [0, tasks), each once, on at most `threads` threads, and returns when all are done.
// Tasks are handed out dynamically: a task must write only what is its own, in an order of its own, so that results do
// not depend on which thread ran it.
void parallel_for(int threads, int64_t tasks, const std::function<void(int64_t)>& task);

// Hands over the OpenMP runtime that the process already has (torch's), as the address of its GOMP_parallel. Two pools
// on the same cores would spin against each other. Without it, each call starts threads of its own.
void use_openmp(std::uintptr_t gomp_parallel);

// "openmp" or "threads": what parallel_for runs on.
const char* parallel_runtime();

}  // namespace fastbin
