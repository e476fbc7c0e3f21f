// What a kernel file needs beside CUDA itself. Under a plain C++ compiler, tests/cuda/host_shim.h stands in for the
// device, so launches, shared memory and clusters are spelled through these names.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#if defined(__CUDACC__)
#define ADAPT_LAUNCH(kernel, blocks, threads, stream, ...) kernel<<<blocks, threads, 0, stream>>>(__VA_ARGS__)
#define ADAPT_SHARED __shared__
#define ADAPT_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#include "cluster.cuh"
#else
#include "host_shim.h"
#endif

namespace adapt {

inline int last_status() { return cudaGetLastError() == cudaSuccess ? 0 : 2; }

// A grid takes this many blocks; what is more is looped over.
constexpr int64_t kMostBlocks = (int64_t(1) << 31) - 1;

inline unsigned grid_of(int64_t blocks) { return unsigned(blocks < kMostBlocks ? blocks : kMostBlocks); }

}  // namespace adapt
