// A row in tiles of 1024 columns, one warp each. Which thread sums which columns, and in which order sums are merged,
// depends on the column numbers alone: not on alignment, on the blocks a row is spread over, or on the kernel.
#pragma once
#include "softmax_row.cuh"

namespace adapt {

constexpr int kTileColumns = 1024;
constexpr int kLaneColumns = kTileColumns / kWarp;
// Tiles merged one after another before the tree over the groups.
constexpr int kGroupTiles = 8;
constexpr unsigned kAllLanes = 0xffffffffu;

__host__ __device__ inline int64_t tiles_of(int64_t vocab_size) { return (vocab_size + kTileColumns - 1) / kTileColumns; }
__host__ __device__ inline int64_t groups_of(int64_t tiles) { return (tiles + kGroupTiles - 1) / kGroupTiles; }

template <typename T>
__device__ inline bool aligned(const T* x) {
  return reinterpret_cast<uintptr_t>(x) % sizeof(Pack<T>) == 0;
}

// One lane's columns of a tile: pack j begins at column (j * kWarp + lane) * Pack::kSize of it.
template <typename T>
struct LanePacks {
  static constexpr int kPacks = kLaneColumns / Pack<T>::kSize;
  Pack<T> pack[kPacks];
};

// Columns beyond the row are -inf. All loads are issued before the first is used.
template <typename T>
__device__ inline void load_tile(const T* x, int64_t begin, int64_t n, LanePacks<T>* mine) {
  constexpr int kSize = Pack<T>::kSize;
  const int lane = threadIdx.x % kWarp;
  const bool whole = begin + kTileColumns <= n && aligned(x);
#pragma unroll
  for (int j = 0; j < LanePacks<T>::kPacks; ++j) {
    const int64_t at = begin + (j * kWarp + lane) * kSize;
    if (whole) {
      mine->pack[j] = load_pack(x + at);
    } else {
#pragma unroll
      for (int k = 0; k < kSize; ++k) {
        if (at + k < n) mine->pack[j].item[k] = x[at + k];
        else from_float(-INFINITY, &mine->pack[j].item[k]);
      }
    }
  }
}

template <typename T>
__device__ inline void stage_tile(const LanePacks<T>& mine, T* staged) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int j = 0; j < LanePacks<T>::kPacks; ++j) store_pack(mine.pack[j], staged + (j * kWarp + lane) * Pack<T>::kSize);
}

__device__ inline float warp_max(float max) {
  for (int step = kWarp / 2; step > 0; step /= 2) max = fmaxf(max, __shfl_xor_sync(kAllLanes, max, step));
  return max;
}

// The tile's partial, in lane 0.
template <typename T>
__device__ inline Partial tile_partial(const LanePacks<T>& mine, float scale2) {
  constexpr int kSize = Pack<T>::kSize;
  float max = minus_infinity();
#pragma unroll
  for (int k = 0; k < kLaneColumns; ++k) max = fmaxf(max, to_float(mine.pack[k / kSize].item[k % kSize]));
  max = warp_max(max);
  const float base = max == minus_infinity() ? 0.0f : max;
  float mass = 0, moment = 0;
#pragma unroll
  for (int k = 0; k < kLaneColumns; ++k) {
    // A NaN fails the comparison and stays; so does inf - inf, in a row that has no distribution.
    const float a = (to_float(mine.pack[k / kSize].item[k % kSize]) - base) * scale2;
    const float kept = a < kVanishing ? kVanishing : a, e = power_of_two(kept);
    mass += e;
    moment += e * kept;
  }
  for (int step = kWarp / 2; step > 0; step /= 2) {
    mass += __shfl_down_sync(kAllLanes, mass, step);
    moment += __shfl_down_sync(kAllLanes, moment, step);
  }
  if (max == minus_infinity()) return {max, mass != mass ? NAN : 0.0f, 0.0f};
  return {max, mass, moment};
}

__device__ inline Partial merge_group(const Partial* tiles, int64_t count, float scale2) {
  Partial whole = tiles[0];
  for (int64_t t = 1; t < count; ++t) whole = merged(whole, tiles[t], scale2);
  return whole;
}

// By a whole warp; the row's partial, in lane 0. group(g): group g's.
template <typename Group>
__device__ inline Partial merge_groups(int64_t groups, float scale2, Group group) {
  Partial mine{minus_infinity(), 0.0f, 0.0f};
  for (int64_t g = threadIdx.x % kWarp; g < groups; g += kWarp) mine = merged(mine, group(g), scale2);
  for (int step = kWarp / 2; step > 0; step /= 2) {
    Partial other;
    other.max = __shfl_down_sync(kAllLanes, mine.max, step);
    other.mass = __shfl_down_sync(kAllLanes, mine.mass, step);
    other.moment = __shfl_down_sync(kAllLanes, mine.moment, step);
    mine = merged(mine, other, scale2);
  }
  return mine;
}

// A tile of the gradient by a warp. `x` is the tile's first column, staged or not, `out` the row; they may be the same
// memory: a column is read by the lane that writes it. `g` by value: in shared memory it would be read for every column.
template <typename T>
__device__ inline void write_tile(const T* x, T* out, int64_t begin, int64_t n, int64_t id, const GradientRow g) {
  constexpr int kSize = Pack<T>::kSize;
  const int lane = threadIdx.x % kWarp;
  if (begin + kTileColumns <= n && aligned(x) && aligned(out)) {
    for (int at = lane * kSize; at < kTileColumns; at += kWarp * kSize) {
      Pack<T> pack{};
      if (g.any) {
        pack = load_pack(x + at);
        for (int k = 0; k < kSize; ++k)
          from_float(column_gradient(to_float(pack.item[k]), begin + at + k == id, g), &pack.item[k]);
      }
      store_pack(pack, out + begin + at);
    }
    return;
  }
  for (int at = lane; at < kTileColumns && begin + at < n; at += kWarp)
    from_float(g.any ? column_gradient(to_float(x[at]), begin + at == id, g) : 0.0f, out + begin + at);
}

// A tile of `row` times `factor`, by a warp.
template <typename T>
__device__ inline void scale_tile(T* row, int64_t begin, int64_t n, float factor) {
  constexpr int kSize = Pack<T>::kSize;
  const int lane = threadIdx.x % kWarp;
  if (begin + kTileColumns <= n && aligned(row)) {
    for (int at = lane * kSize; at < kTileColumns; at += kWarp * kSize) {
      Pack<T> pack = load_pack(row + begin + at);
      for (int k = 0; k < kSize; ++k) from_float(to_float(pack.item[k]) * factor, &pack.item[k]);
      store_pack(pack, row + begin + at);
    }
    return;
  }
  for (int64_t at = begin + lane; at < n && at < begin + kTileColumns; at += kWarp)
    from_float(to_float(row[at]) * factor, row + at);
}

}  // namespace adapt
