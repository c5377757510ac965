// The fibers behind cuda_runtime.h.
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <utility>

#include "cuda_runtime.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;
int emulated_capability = 80, emulated_multiprocessors = 2, emulated_device = 0;

namespace emulation {

Thread* self = nullptr;

struct Fiber {
  Thread thread;
  uint3 thread_index, block_index;
  ucontext_t context;
  std::vector<char> stack;
  bool lags, done;
};

namespace {

constexpr std::size_t kStackBytes = 32 * 1024;  // the sanitizer clears the shadow of all of it at each switch
constexpr int kPatience = 1000000;              // turns in which nothing happens before it is called a deadlock

ucontext_t scheduler;
Fiber* running = nullptr;
std::vector<Fiber*> ready;
const std::function<void()>* body = nullptr;
int idle_turns = 0;
std::mt19937 draw(12345);

void enter() {
  (*body)();
  running->done = true;
}

void start(Fiber& fiber) {
  fiber.done = false;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.data();
  fiber.context.uc_stack.ss_size = fiber.stack.size();
  fiber.context.uc_link = &scheduler;
  makecontext(&fiber.context, enter, 0);
  ready.push_back(&fiber);
}

Fiber* take_one() {
  std::size_t i = draw() % ready.size();
  if (ready[i]->lags && draw() % 4 != 0) i = draw() % ready.size();
  std::swap(ready[i], ready.back());
  Fiber* fiber = ready.back();
  ready.pop_back();
  return fiber;
}

void resume(Fiber& fiber) {
  running = &fiber;
  self = &fiber.thread;
  threadIdx = fiber.thread_index;
  blockIdx = fiber.block_index;
  swapcontext(&scheduler, &fiber.context);
}

[[noreturn]] void deadlock(std::size_t alive) {
  std::fprintf(stderr, "deadlock: %zu threads wait for ever\n", alive);
  std::exit(3);
}

}  // namespace

void progress() { idle_turns = 0; }

void yield() {
  ++idle_turns;
  ready.push_back(running);
  swapcontext(&running->context, &scheduler);
}

void Barrier::arrive_and_wait(int participants) {
  progress();
  if (waiting_.size() + 1 == static_cast<std::size_t>(participants)) {
    ready.insert(ready.end(), waiting_.begin(), waiting_.end());
    waiting_.clear();
    yield();
  } else {
    waiting_.push_back(running);
    swapcontext(&running->context, &scheduler);
  }
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
    const unsigned lagging = static_cast<unsigned>(draw()) % (threads / 32);
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
      fiber.lags = i % threads / 32 == lagging;
      start(fiber);
    }
    idle_turns = 0;
    for (std::size_t alive = std::size_t{cluster} * threads; alive > 0;) {
      if (ready.empty() || idle_turns > kPatience) deadlock(alive);
      Fiber* fiber = take_one();
      resume(*fiber);
      if (fiber->done) --alive, progress();
    }
  }
}

}  // namespace emulation
