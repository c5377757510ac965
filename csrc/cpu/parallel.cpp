#include "cpu/parallel.h"

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

namespace fastbin {
namespace {

// GCC's OpenMP entry point; LLVM's and Intel's runtimes export it too.
using GompParallel = void (*)(void (*fn)(void*), void* data, unsigned threads, unsigned flags);

std::atomic<GompParallel> gomp_parallel{nullptr};

struct Job {
  const std::function<void(int64_t)>& task;
  int64_t tasks;
  std::atomic<int64_t> next{0};
};

void work(void* data) {
  Job& job = *static_cast<Job*>(data);
  for (int64_t i = job.next++; i < job.tasks; i = job.next++) job.task(i);
}

}  // namespace

void parallel_for(int threads, int64_t tasks, const std::function<void(int64_t)>& task) {
  const int64_t workers = std::min<int64_t>(threads, tasks);
  Job job{task, tasks};
  if (workers <= 1) {
    work(&job);
  } else if (GompParallel fork = gomp_parallel.load()) {
    fork(work, &job, static_cast<unsigned>(workers), 0);
  } else {
    std::vector<std::thread> pool;
    pool.reserve(static_cast<size_t>(workers - 1));
    for (int64_t t = 1; t < workers; ++t) pool.emplace_back(work, &job);
    work(&job);
    for (std::thread& t : pool) t.join();
  }
}

void use_openmp(std::uintptr_t address) { gomp_parallel = reinterpret_cast<GompParallel>(address); }

const char* parallel_runtime() { return gomp_parallel.load() != nullptr ? "openmp" : "threads"; }

}  // namespace fastbin
