// The fibers behind cuda_runtime.h.
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>

#include "cuda_runtime.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;
int emulated_capability = 80, emulated_multiprocessors = 2, emulated_device = 0;

namespace emulation {

Thread* self = nullptr;

namespace {

constexpr std::size_t kStackBytes = 128 * 1024;

struct Fiber {
  Thread thread;
  uint3 thread_index, block_index;
  ucontext_t context;
  std::vector<char> stack;
  bool done = false;
};

ucontext_t scheduler;
Fiber* running = nullptr;
const std::function<void()>* body = nullptr;
bool got_on = false;
std::mt19937 order(12345);

void enter() {
  (*body)();
  running->done = true;
  progress();
}

void start(Fiber& fiber) {
  fiber.done = false;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.data();
  fiber.context.uc_stack.ss_size = fiber.stack.size();
  fiber.context.uc_link = &scheduler;
  makecontext(&fiber.context, enter, 0);
}

void resume(Fiber& fiber) {
  running = &fiber;
  self = &fiber.thread;
  threadIdx = fiber.thread_index;
  blockIdx = fiber.block_index;
  swapcontext(&scheduler, &fiber.context);
}

}  // namespace

void progress() { got_on = true; }
void yield() { swapcontext(&running->context, &scheduler); }

void Barrier::arrive_and_wait(int participants) {
  progress();
  if (++arrived_ == participants) {
    arrived_ = 0;
    ++generation_;
    return;
  }
  const unsigned mine = generation_;
  while (generation_ == mine) yield();
}

void run(unsigned blocks, unsigned threads, std::size_t shared_bytes, unsigned cluster,
         const std::function<void()>& kernel) {
  blockDim = dim3(threads);
  gridDim = dim3(blocks);
  body = &kernel;
  static std::vector<std::unique_ptr<Fiber>> fibers;  // stacks are kept from launch to launch
  while (fibers.size() < std::size_t{cluster} * threads) {
    fibers.push_back(std::make_unique<Fiber>());
    fibers.back()->stack.resize(kStackBytes);
  }
  for (unsigned first = 0; first < blocks; first += cluster) {
    // Exactly the size asked for, so that the address sanitizer sees an access beyond it; full of rubbish.
    std::vector<std::vector<uint32_t>> shared(cluster, std::vector<uint32_t>(shared_bytes / 4, 0xa5a5a5a5u));
    std::vector<Warp> warps(std::size_t{cluster} * threads / 32);
    std::vector<Barrier> block_barriers(cluster);
    Barrier cluster_barrier;
    std::vector<Fiber*> alive;
    for (unsigned i = 0; i < cluster * threads; ++i) {
      Fiber& fiber = *fibers[i];
      const unsigned block = i / threads;
      fiber.thread = {&warps[i / 32],
                      &block_barriers[block],
                      &cluster_barrier,
                      &shared,
                      static_cast<int>(block),
                      static_cast<int>(cluster),
                      {{}},
                      0};
      fiber.thread_index = {i % threads, 0, 0};
      fiber.block_index = {first + block, 0, 0};
      start(fiber);
      alive.push_back(&fiber);
    }
    while (!alive.empty()) {
      got_on = false;
      std::shuffle(alive.begin(), alive.end(), order);
      for (Fiber* fiber : alive) resume(*fiber);
      alive.erase(std::remove_if(alive.begin(), alive.end(), [](Fiber* fiber) { return fiber->done; }), alive.end());
      if (!got_on) {
        std::fprintf(stderr, "deadlock: %zu threads of block %u wait for ever\n", alive.size(), first);
        std::exit(3);
      }
    }
  }
}

}  // namespace emulation
