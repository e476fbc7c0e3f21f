// How a row is spread over the blocks of a cluster and their shared memory.
#pragma once
#include "launch.cuh"

namespace adapt {

struct RowLayout {
  unsigned cluster;  // blocks
  int64_t tiles, block_tiles;
  int64_t staged_bytes, shared_bytes;  // per block; staged_bytes 0: the row stays where it is

  __host__ __device__ bool staged() const { return staged_bytes > 0; }
  __host__ __device__ int64_t first_tile(unsigned rank) const { return rank * block_tiles; }
  __host__ __device__ int64_t last_tile(unsigned rank) const {
    const int64_t last = (rank + 1) * block_tiles;
    return last < tiles ? last : tiles;
  }
};

inline RowLayout unstaged_layout(int64_t tiles, int64_t extra) { return {1, tiles, tiles, 0, extra}; }

// The fewest blocks with which a multiprocessor holds several rows at once, so that one is loaded while another is
// written; then with which it holds one. extra: bytes every block needs beside its tiles. tile_bytes 0: stage nothing.
inline RowLayout row_layout(int64_t tiles, int64_t tile_bytes, int64_t extra, const DeviceLimits& limits) {
  constexpr int64_t kReserved = 1024;  // by the system, per block
  const unsigned most = limits.clusters ? 8 : 1;
  if (tile_bytes == 0) return unstaged_layout(tiles, extra);
  for (int64_t blocks : {4, 2, 1}) {
    for (unsigned cluster = 1; cluster <= most; cluster *= 2) {
      const int64_t block_tiles = (tiles + cluster - 1) / cluster, staged = block_tiles * tile_bytes;
      const int64_t bytes = staged + extra;
      if (bytes <= limits.block_shared && (bytes + kReserved) * blocks <= limits.multiprocessor_shared)
        return {cluster, tiles, block_tiles, staged, bytes};
    }
  }
  return unstaged_layout(tiles, extra);
}

// A cluster per row. Returns false if the device refuses the layout.
template <typename Arguments>
bool launch_rows(void (*kernel)(Arguments, RowLayout), const Arguments& arguments, const RowLayout& layout,
                 unsigned threads, cudaStream_t stream) {
  const int64_t rows = arguments.logits.count, most = kMostBlocks / layout.cluster;
  const unsigned clusters = unsigned(rows < most ? rows : most);
  if (!launch_clusters(kernel, clusters, layout.cluster, threads, layout.shared_bytes, stream, arguments, layout))
    return true;
  cudaGetLastError();  // not for whoever asks next
  return false;
}

}  // namespace adapt
