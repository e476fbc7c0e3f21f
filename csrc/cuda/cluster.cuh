// Thread-block clusters: blocks that meet at a barrier and reach each other's shared memory. From sm_90 on; on older
// devices every block is a cluster of its own.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace adapt {

struct DeviceLimits {
  int64_t block_shared, multiprocessor_shared;
  bool clusters;
};

inline DeviceLimits device_limits() {
  int device = 0, block = 0, multiprocessor = 0, clusters = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaDeviceGetAttribute(&multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  cudaDeviceGetAttribute(&clusters, cudaDevAttrClusterLaunch, device);
  return {block, multiprocessor, clusters != 0};
}

__device__ inline unsigned cluster_rank() {
#if __CUDA_ARCH__ >= 900
  return __clusterRelativeBlockRank();
#else
  return 0;
#endif
}

// Every thread of every block of the cluster; what they wrote before, they see after.
__device__ inline void cluster_sync() {
#if __CUDA_ARCH__ >= 900
  __cluster_barrier_arrive();
  __cluster_barrier_wait();
#else
  __syncthreads();
#endif
}

// Where `shared`, an address in this block's shared memory, is in another block's.
template <typename T>
__device__ inline T* in_block(T* shared, unsigned rank) {
#if __CUDA_ARCH__ >= 900
  return static_cast<T*>(__cluster_map_shared_rank(shared, rank));
#else
  return shared;
#endif
}

// Launches `clusters` clusters of `size` blocks. Asks the device first, where a size or so much memory may not fit it.
template <typename... Parameters>
cudaError_t launch_clusters(void (*kernel)(Parameters...), unsigned clusters, unsigned size, unsigned threads,
                            int64_t shared_bytes, cudaStream_t stream, Parameters... arguments) {
  const auto limit = cudaFuncAttributeMaxDynamicSharedMemorySize;
  if (cudaError_t error = cudaFuncSetAttribute(kernel, limit, int(shared_bytes))) return error;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(clusters * size);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = size_t(shared_bytes);
  config.stream = stream;
  cudaLaunchAttribute shape;
  shape.id = cudaLaunchAttributeClusterDimension;
  shape.val.clusterDim.x = size;
  shape.val.clusterDim.y = shape.val.clusterDim.z = 1;
  config.attrs = &shape;
  config.numAttrs = size > 1;
  int fitting = 1;
  if (size > 1)
    if (cudaError_t error = cudaOccupancyMaxActiveClusters(&fitting, kernel, &config)) return error;
  return fitting > 0 ? cudaLaunchKernelEx(&config, kernel, arguments...) : cudaErrorLaunchOutOfResources;
}

}  // namespace adapt
