// Runs a CUDA kernel on the CPU: one fiber per thread of a cluster of blocks, switched at barriers and shuffles, clusters
// one after another. Finds wrong indices (with AddressSanitizer) and threads that miss a barrier; not races of memory order.
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
#define __host__
// One block runs at a time outside clusters, so one copy per kernel will do.
#define ADAPT_SHARED static
#define ADAPT_DYNAMIC_SHARED(name) unsigned char* const name = host_shim::my_block().shared.get()

namespace host_shim {

constexpr size_t kStackBytes = 64 << 10;

struct Fiber {
  ucontext_t context;
  bool done = false;
};

// Stacks outlive a cluster: making them costs more than running it.
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

// Sixteen bytes aligned, of exactly the size asked for, and never zero before they are written.
struct Free {
  void operator()(unsigned char* memory) const { std::free(memory); }
};
using Shared = std::unique_ptr<unsigned char, Free>;
inline Shared shared_memory(size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 16, bytes ? bytes : 1)) std::abort();
  std::memset(memory, 0xcb, bytes);
  return Shared(static_cast<unsigned char*>(memory));
}

struct Block {
  std::vector<Barrier> warps;
  Barrier all;
  std::vector<uint64_t> lanes;
  Shared shared;
};

struct Cluster {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Block> blocks;
  Barrier all;
  unsigned threads;  // of a block
  ucontext_t scheduler;
  unsigned current = 0;
  bool moved = false;
  std::function<void()> body;
};
inline Cluster* cluster = nullptr;

inline unsigned my_rank() { return cluster->current / cluster->threads; }
inline Block& my_block() { return cluster->blocks[my_rank()]; }

inline void yield() { swapcontext(&cluster->fibers[cluster->current]->context, &cluster->scheduler); }

inline void wait(Barrier& barrier) {
  const uint64_t generation = barrier.opened;
  cluster->moved = true;
  if (++barrier.arrived == barrier.members) {
    barrier.arrived = 0;
    ++barrier.opened;
    return;
  }
  while (barrier.opened == generation) yield();
  cluster->moved = true;
}

inline void run_fiber() {
  cluster->body();
  cluster->fibers[cluster->current]->done = true;
  cluster->moved = true;
  yield();
}

inline Block make_block(unsigned threads, size_t shared_bytes) {
  Block block;
  block.all.members = threads;
  block.warps.resize((threads + 31) / 32);
  for (unsigned w = 0; w < block.warps.size(); ++w) block.warps[w].members = threads - 32 * w < 32 ? threads - 32 * w : 32;
  block.lanes.resize(threads);
  block.shared = shared_memory(shared_bytes);
  return block;
}

inline std::unique_ptr<Fiber> make_fiber(unsigned number) {
  auto fiber = std::make_unique<Fiber>();
  getcontext(&fiber->context);
  fiber->context.uc_stack.ss_sp = stack_of(number);
  fiber->context.uc_stack.ss_size = kStackBytes;
  fiber->context.uc_link = nullptr;
  makecontext(&fiber->context, run_fiber, 0);
  return fiber;
}

inline void run_cluster(unsigned number, unsigned size, unsigned threads, size_t shared_bytes,
                        const std::function<void()>& body) {
  Cluster state;
  cluster = &state;
  state.body = body;
  state.threads = threads;
  state.all.members = size * threads;
  for (unsigned rank = 0; rank < size; ++rank) state.blocks.push_back(make_block(threads, shared_bytes));
  for (unsigned t = 0; t < size * threads; ++t) state.fibers.push_back(make_fiber(t));
  for (unsigned left = size * threads; left > 0;) {
    state.moved = false;
    left = 0;
    for (unsigned t = 0; t < size * threads; ++t) {
      if (state.fibers[t]->done) continue;
      state.current = t;
      threadIdx.x = t % threads;
      blockIdx.x = number * size + t / threads;
      swapcontext(&state.scheduler, &state.fibers[t]->context);
      left += !state.fibers[t]->done;
    }
    if (left > 0 && !state.moved) {
      std::fprintf(stderr, "deadlock: %u threads wait at a barrier the others never reach\n", left);
      std::abort();
    }
  }
  cluster = nullptr;
}

template <typename Kernel, typename... Arguments>
void launch(Kernel kernel, unsigned clusters, unsigned size, unsigned threads, size_t shared_bytes,
            Arguments... arguments) {
  gridDim.x = clusters * size;
  for (unsigned c = 0; c < clusters; ++c) run_cluster(c, size, threads, shared_bytes, [&] { kernel(arguments...); });
}

}  // namespace host_shim

#define ADAPT_LAUNCH(kernel, blocks, threads, stream, ...) host_shim::launch(kernel, blocks, 1, threads, 0, __VA_ARGS__)

inline void __syncthreads() { host_shim::wait(host_shim::my_block().all); }

namespace host_shim {

inline float exchange(float value, unsigned from) {
  Block& block = my_block();
  const unsigned me = threadIdx.x, warp = me / 32;
  std::memcpy(&block.lanes[me], &value, sizeof value);
  wait(block.warps[warp]);
  float found;
  std::memcpy(&found, &block.lanes[from / 32 == warp && from < block.lanes.size() ? from : me], sizeof found);
  wait(block.warps[warp]);
  return found;
}

}  // namespace host_shim

inline float __shfl_down_sync(unsigned, float value, int step) {
  return host_shim::exchange(value, threadIdx.x + step);
}
inline float __shfl_xor_sync(unsigned, float value, int step) {
  return host_shim::exchange(value, threadIdx.x ^ step);
}

// csrc/cuda/cluster.cuh for the host. The limits are a device's for a test to choose, an H100's until it does.
extern "C" {
inline int64_t adapt_host_block_shared = 227 << 10, adapt_host_multiprocessor_shared = 228 << 10;
inline int64_t adapt_host_clusters = 1;
// Launches of larger clusters fail, as on a device whose multiprocessors are shared out.
inline int64_t adapt_host_largest_cluster = 8;
// Blocks of the last cluster launched, and its shared bytes each.
inline int64_t adapt_host_last_cluster = 0, adapt_host_last_shared = 0;
}

namespace adapt {

struct DeviceLimits {
  int64_t block_shared, multiprocessor_shared;
  bool clusters;
};

inline DeviceLimits device_limits() {
  return {adapt_host_block_shared, adapt_host_multiprocessor_shared, adapt_host_clusters != 0};
}

inline unsigned cluster_rank() { return host_shim::my_rank(); }
inline void cluster_sync() { host_shim::wait(host_shim::cluster->all); }

template <typename T>
T* in_block(T* shared, unsigned rank) {
  const auto offset = reinterpret_cast<unsigned char*>(shared) - host_shim::my_block().shared.get();
  return reinterpret_cast<T*>(host_shim::cluster->blocks[rank].shared.get() + offset);
}

template <typename... Parameters>
cudaError_t launch_clusters(void (*kernel)(Parameters...), unsigned clusters, unsigned size, unsigned threads,
                            int64_t shared_bytes, cudaStream_t, Parameters... arguments) {
  if (shared_bytes > adapt_host_block_shared) return cudaErrorInvalidValue;
  if (size > adapt_host_largest_cluster) return cudaErrorLaunchOutOfResources;
  adapt_host_last_cluster = size;
  adapt_host_last_shared = shared_bytes;
  host_shim::launch(kernel, clusters, size, threads, size_t(shared_bytes), arguments...);
  return cudaSuccess;
}

}  // namespace adapt

// The runtime is not linked.
#define cudaGetLastError() cudaSuccess
