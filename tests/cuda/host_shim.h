// Runs a CUDA kernel on the CPU: one fiber per thread of a block, switched at barriers and shuffles, blocks one after
// another. Finds wrong indices (with AddressSanitizer) and threads that miss a barrier; not races of memory order.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

using std::exp;
using std::expm1;
using std::fabs;
using std::log;

struct HostIndex {
  unsigned x;
};
inline HostIndex threadIdx, blockIdx, gridDim;

#undef __global__
#undef __device__
#undef __shared__
#undef __launch_bounds__
#define __global__
#define __device__
#define __launch_bounds__(threads)
// One block runs at a time, so one copy per kernel will do.
#define ADAPT_SHARED static

namespace host_shim {

constexpr size_t kStackBytes = 64 << 10;

struct Fiber {
  ucontext_t context;
  bool done = false;
};

// Stacks outlive a block: making 512 of them costs more than running it.
inline char* stack_of(unsigned thread) {
  static std::vector<std::unique_ptr<char[]>> stacks;
  while (stacks.size() <= thread) stacks.emplace_back(new char[kStackBytes]);
  return stacks[thread].get();
}

// Who has arrived at a barrier; it opens when all of its members have.
struct Barrier {
  unsigned members, arrived = 0;
  uint64_t opened = 0;
};

struct Block {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Barrier> warps;
  Barrier all;
  std::vector<uint64_t> lanes;
  ucontext_t scheduler;
  unsigned current = 0;
  bool moved = false;
  std::function<void()> body;
};
inline Block* block = nullptr;

inline void yield() { swapcontext(&block->fibers[block->current]->context, &block->scheduler); }

inline void wait(Barrier& barrier) {
  const uint64_t generation = barrier.opened;
  block->moved = true;
  if (++barrier.arrived == barrier.members) {
    barrier.arrived = 0;
    ++barrier.opened;
    return;
  }
  while (barrier.opened == generation) yield();
  block->moved = true;
}

inline void run_fiber() {
  block->body();
  block->fibers[block->current]->done = true;
  block->moved = true;
  yield();
}

inline void run_block(unsigned threads, const std::function<void()>& body) {
  Block state;
  block = &state;
  state.body = body;
  state.all.members = threads;
  state.warps.resize((threads + 31) / 32);
  for (unsigned w = 0; w < state.warps.size(); ++w) state.warps[w].members = threads - 32 * w < 32 ? threads - 32 * w : 32;
  state.lanes.resize(threads);
  for (unsigned t = 0; t < threads; ++t) {
    state.fibers.push_back(std::make_unique<Fiber>());
    Fiber& fiber = *state.fibers.back();
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack_of(t);
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_fiber, 0);
  }
  for (unsigned left = threads; left > 0;) {
    state.moved = false;
    left = 0;
    for (unsigned t = 0; t < threads; ++t) {
      if (state.fibers[t]->done) continue;
      state.current = threadIdx.x = t;
      swapcontext(&state.scheduler, &state.fibers[t]->context);
      left += !state.fibers[t]->done;
    }
    if (left > 0 && !state.moved) {
      std::fprintf(stderr, "deadlock: %u threads wait at a barrier the others never reach\n", left);
      std::abort();
    }
  }
  block = nullptr;
}

template <typename Kernel, typename... Arguments>
void launch(Kernel kernel, unsigned blocks, unsigned threads, Arguments... arguments) {
  gridDim.x = blocks;
  for (unsigned b = 0; b < blocks; ++b) {
    blockIdx.x = b;
    run_block(threads, [&] { kernel(arguments...); });
  }
}

}  // namespace host_shim

#define ADAPT_LAUNCH(kernel, blocks, threads, stream, ...) host_shim::launch(kernel, blocks, threads, __VA_ARGS__)

inline void __syncthreads() { host_shim::wait(host_shim::block->all); }

inline float __shfl_down_sync(unsigned, float value, int step) {
  host_shim::Block& b = *host_shim::block;
  const unsigned me = threadIdx.x, warp = me / 32, from = me + step;
  std::memcpy(&b.lanes[me], &value, sizeof value);
  host_shim::wait(b.warps[warp]);
  float found;
  std::memcpy(&found, &b.lanes[from / 32 == warp && from < b.lanes.size() ? from : me], sizeof found);
  host_shim::wait(b.warps[warp]);
  return found;
}

// The runtime is not linked.
#define cudaGetLastError() cudaSuccess
