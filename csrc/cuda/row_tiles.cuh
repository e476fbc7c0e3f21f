// A row in tiles of 1024 columns, one warp each. Which thread sums which columns, and in which order sums are merged,
// depends on the column numbers alone: not on alignment, on the blocks a row is spread over, or on the kernel.
#pragma once
#include <type_traits>

#include "softmax_row.cuh"

namespace adapt {

constexpr int kTileColumns = 1024;
constexpr int kLaneColumns = kTileColumns / kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;

__host__ __device__ inline int64_t tiles_of(int64_t vocab_size) { return (vocab_size + kTileColumns - 1) / kTileColumns; }

template <typename T>
__device__ inline bool aligned(const T* x) {
  return reinterpret_cast<uintptr_t>(x) % sizeof(Pack<T>) == 0;
}

// One lane's columns of a tile, as words: pack j begins at column (j * kWarp + lane) * Pack::kSize of it.
template <typename T>
struct LanePacks {
  static constexpr int kPacks = kLaneColumns / Pack<T>::kSize;
  uint4 pack[kPacks];

  __device__ float operator[](int k) const { return column_of(pack[k / Pack<T>::kSize], k % Pack<T>::kSize, (T*)nullptr); }
};

// Columns beyond the row are -inf. All loads are issued before the first is used.
template <typename T>
__device__ inline void load_tile(const T* x, int64_t begin, int64_t n, LanePacks<T>* mine) {
  constexpr int kSize = Pack<T>::kSize;
  const int lane = threadIdx.x % kWarp;
  const T* from = x + begin + lane * kSize;
  if (begin + kTileColumns <= n && aligned(x)) {
#pragma unroll
    for (int j = 0; j < LanePacks<T>::kPacks; ++j)
      mine->pack[j] = *reinterpret_cast<const uint4*>(from + j * (kWarp * kSize));
    return;
  }
  const int64_t left = n - begin - lane * kSize;
#pragma unroll
  for (int j = 0; j < LanePacks<T>::kPacks; ++j) {
    Pack<T> pack;
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      if (j * (kWarp * kSize) + k < left) pack.item[k] = from[j * (kWarp * kSize) + k];
      else from_float(-INFINITY, &pack.item[k]);
    }
    memcpy(&mine->pack[j], &pack, sizeof pack);
  }
}

template <typename T>
__device__ inline void stage_tile(const LanePacks<T>& mine, T* staged) {
  T* to = staged + threadIdx.x % kWarp * Pack<T>::kSize;
#pragma unroll
  for (int j = 0; j < LanePacks<T>::kPacks; ++j)
    *reinterpret_cast<uint4*>(to + j * (kWarp * Pack<T>::kSize)) = mine.pack[j];
}

__device__ inline float warp_max(float max) {
#if __CUDA_ARCH__ >= 800
  const int bits = __float_as_int(max), key = __reduce_max_sync(kAllLanes, bits ^ ((bits >> 31) & 0x7fffffff));
  return __int_as_float(key ^ ((key >> 31) & 0x7fffffff));
#else
  for (int step = kWarp / 2; step > 0; step /= 2) max = fmaxf(max, __shfl_xor_sync(kAllLanes, max, step));
  return max;
#endif
}

// Sums of two numbers over a warp, in lane 0: half of the lanes add up the one, half the other.
__device__ inline void warp_sums(float* a, float* b) {
  const bool upper = threadIdx.x & (kWarp / 2);
  float mine = upper ? *b : *a;
  mine += __shfl_xor_sync(kAllLanes, upper ? *a : *b, kWarp / 2);
  for (int step = kWarp / 4; step > 0; step /= 2) mine += __shfl_xor_sync(kAllLanes, mine, step);
  *a = mine;
  *b = __shfl_xor_sync(kAllLanes, mine, kWarp / 2);
}

struct Extremes {
  float low, high;
};

// Of a lane's columns; a number wins over NaN.
template <typename T>
__device__ inline Extremes extremes(const LanePacks<T>& mine) {
  Extremes found{INFINITY, minus_infinity()};
#pragma unroll
  for (int k = 0; k < kLaneColumns; ++k) {
    const float x = mine[k];
    found = {fminf(found.low, x), fmaxf(found.high, x)};
  }
  return found;
}

#if __CUDA_ARCH__ >= 800
__device__ inline __nv_bfloat162 pair_of(uint32_t word, const __nv_bfloat16*) {
  return *reinterpret_cast<const __nv_bfloat162*>(&word);
}
__device__ inline __half2 pair_of(uint32_t word, const __half*) { return *reinterpret_cast<const __half2*>(&word); }

// Two at a time.
template <typename T>
__device__ inline Extremes packed_extremes(const LanePacks<T>& mine) {
  auto low = pair_of(mine.pack[0].x, (T*)nullptr), high = low;
#pragma unroll
  for (int k = 1; k < kLaneColumns / 2; ++k) {
    const auto pair = pair_of(word_of(mine.pack[k / 4], k % 4), (T*)nullptr);
    low = __hmin2(low, pair);
    high = __hmax2(high, pair);
  }
  // The initial values where every column is NaN.
  return {fminf(INFINITY, fminf(to_float(low.x), to_float(low.y))),
          fmaxf(minus_infinity(), fmaxf(to_float(high.x), to_float(high.y)))};
}
template <>
__device__ inline Extremes extremes(const LanePacks<__nv_bfloat16>& mine) { return packed_extremes(mine); }
template <>
__device__ inline Extremes extremes(const LanePacks<__half>& mine) { return packed_extremes(mine); }
#endif

struct Sums {
  float mass, moment;
};

// 2^(x scale2 - shift) with shift = base scale2, rounded: all terms are off by one factor, taken out at the end.
template <typename T>
__device__ inline Sums fused_sums(const LanePacks<T>& mine, float base, float scale2) {
  const float shift = base * scale2, rest = fmaf(base, scale2, -shift), factor = power_of_two(-rest);
  float mass = 0, moment = 0;
#pragma unroll
  for (int k = 0; k < kLaneColumns; ++k) {
    const float a = fmaf(mine[k], scale2, -shift);
    const float e = power_of_two(a);
    mass += e;
    moment = fmaf(e, a, moment);
  }
  return {mass * factor, (moment - rest * mass) * factor};
}

template <typename T>
__device__ inline Sums careful_sums(const LanePacks<T>& mine, float base, float scale2) {
  float mass = 0, moment = 0;
#pragma unroll
  for (int k = 0; k < kLaneColumns; ++k) {
    // A NaN fails the comparison and stays; so does inf - inf, in a row that has no distribution.
    const float a = (mine[k] - base) * scale2;
    const float kept = a < kVanishing ? kVanishing : a, e = power_of_two(kept);
    mass += e;
    moment += e * kept;
  }
  return {mass, moment};
}

// The tile's partial, in lane 0.
template <typename T>
__device__ inline Partial tile_partial(const LanePacks<T>& mine, float scale2) {
  const Extremes lane = extremes(mine);
  const float max = warp_max(lane.high), base = max == minus_infinity() ? 0.0f : max, shift = base * scale2;
  // Nothing is -inf, which times nothing would be NaN.
  const bool plain = fabsf(shift) < kLargestShift && fmaf(lane.low, scale2, -shift) > minus_infinity();
  Sums sums = plain ? fused_sums(mine, base, scale2) : careful_sums(mine, base, scale2);
  warp_sums(&sums.mass, &sums.moment);
  if (max == minus_infinity()) return {max, sums.mass != sums.mass ? NAN : 0.0f, 0.0f};
  return {max, sums.mass, sums.moment};
}

// By a whole warp; the row's partial, in lane 0.
__device__ inline Partial merge_tiles(const Partial* partials, int64_t tiles, float scale2) {
  Partial mine{minus_infinity(), 0.0f, 0.0f};
  for (int64_t t = threadIdx.x % kWarp; t < tiles; t += kWarp) mine = merged(mine, partials[t], scale2);
  for (int step = kWarp / 2; step > 0; step /= 2) {
    Partial other;
    other.max = __shfl_down_sync(kAllLanes, mine.max, step);
    other.mass = __shfl_down_sync(kAllLanes, mine.mass, step);
    other.moment = __shfl_down_sync(kAllLanes, mine.moment, step);
    mine = merged(mine, other, scale2);
  }
  return mine;
}

// What a plain row's gradient is made of, once per row: power (level + tilt a) with a = x scale2 - shift.
struct FusedSlopes {
  float scale2, shift, level, tilt;

  __device__ explicit FusedSlopes(const GradientRow& g) : scale2(g.scale2), shift(g.max * g.scale2) {
    const float rest = fmaf(g.max, scale2, -shift), factor = power_of_two(-rest);
    level = (g.level - g.tilt * rest) * factor;
    tilt = g.tilt * factor;
  }

  template <bool kTilted>
  __device__ float of(float x) const {
    const float a = fmaf(x, scale2, -shift), power = power_of_two(a);
    // The bound keeps -inf from being multiplied by nothing.
    return power * (kTilted ? fmaf(tilt, fmaxf(a, kVanishing), level) : level);
  }
};

// A lane's columns of a whole, aligned tile: from and to are its first.
template <typename T, bool kTilted>
__device__ inline void write_fused(const T* from, T* to, const FusedSlopes& g) {
  constexpr int kSize = Pack<T>::kSize;
  // More would cost the registers of a fourth block; of __half on sm_100, spill.
  constexpr int kAtOnce = std::is_same<T, __half>::value ? 2 : 4;
#pragma unroll 1
  for (int first = 0; first < LanePacks<T>::kPacks; first += kAtOnce, from += kAtOnce * kWarp * kSize,
           to += kAtOnce * kWarp * kSize) {
    uint4 mine[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) mine[j] = *reinterpret_cast<const uint4*>(from + j * (kWarp * kSize));
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      float slopes[kSize];
#pragma unroll
      for (int k = 0; k < kSize; ++k) slopes[k] = g.template of<kTilted>(column_of(mine[j], k, (T*)nullptr));
      store_floats(slopes, to + j * (kWarp * kSize));
    }
  }
}

// The same bits as the whole tiles of a plain row, and every other row.
__device__ inline float column_gradient(float x, bool is_token, const GradientRow& g, const FusedSlopes& slopes) {
  if (!g.any) return 0;
  return g.fused && !is_token ? slopes.of<true>(x) : column_gradient(x, is_token, g);
}

template <typename T>
__device__ inline void write_tile(const T* x, T* out, int64_t begin, int64_t n, int64_t id, const GradientRow& g) {
  const FusedSlopes slopes(g);
  constexpr int kSize = Pack<T>::kSize;
  const int lane = threadIdx.x % kWarp;
  if (begin + kTileColumns <= n && aligned(x) && aligned(out)) {
#pragma unroll 1
    for (int at = lane * kSize; at < kTileColumns; at += kWarp * kSize) {
      // A row without a gradient need not be readable.
      Pack<T> pack = g.any ? load_pack(x + begin + at) : Pack<T>{};
      for (int k = 0; k < kSize; ++k)
        from_float(column_gradient(to_float(pack.item[k]), begin + at + k == id, g, slopes), &pack.item[k]);
      store_pack(pack, out + begin + at);
    }
    return;
  }
  for (int64_t at = begin + lane; at < begin + kTileColumns && at < n; at += kWarp)
    from_float(column_gradient(g.any ? to_float(x[at]) : 0.0f, at == id, g, slopes), out + at);
}

// Tiles of the gradient by a warp: tile, tile + step, ... before last. Column c of the row is x[c], staged or not, and goes
// to out[c]; they may be the same memory: a column is read by the lane that writes it. `g` by value: in shared memory it
// would be read for every column.
template <typename T>
__device__ inline void write_tiles(const T* x, T* out, int tile, int last, int step, int64_t n, int64_t id,
                                   const GradientRow g) {
  constexpr int kSize = Pack<T>::kSize;
  if (g.fused && aligned(x) && aligned(out)) {
    const int lane = threadIdx.x % kWarp, whole = n / kTileColumns < last ? int(n / kTileColumns) : last;
    // The lane that wrote the token's column writes it again.
    const int home = id >= 0 && id < n && int(id / kSize) % kWarp == lane ? int(id / kTileColumns) : -1;
    const FusedSlopes slopes(g);
    const T* from = x + int64_t(tile) * kTileColumns + lane * kSize;
    T* to = out + int64_t(tile) * kTileColumns + lane * kSize;
    const int64_t stride = int64_t(step) * kTileColumns;
#pragma unroll 1
    for (; tile < whole; tile += step, from += stride, to += stride) {
      if (slopes.tilt == 0) write_fused<T, false>(from, to, slopes);
      else write_fused<T, true>(from, to, slopes);
      if (tile == home) from_float(g.at_token, out + id);
    }
  }
  for (; tile < last; tile += step) write_tile(x, out, int64_t(tile) * kTileColumns, n, id, g);
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
