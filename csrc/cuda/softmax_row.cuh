// A row's softmax statistics by the threads of a block, and any gradient that goes through its log-prob and entropy.
// The same quantities as csrc/cpu/softmax_row.h.
#pragma once
#include "adapt/rows.h"
#include "launch.cuh"

namespace adapt {

constexpr int kWarp = 32;
constexpr float kVanishing = -126.0f;
constexpr float kLog2EFloat = 1.4426950408889634f;
constexpr double kLn2 = 0.69314718055994530942;

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline void from_float(float v, float* x) { *x = v; }
__device__ inline void from_float(float v, __nv_bfloat16* x) { *x = __float2bfloat16(v); }
__device__ inline void from_float(float v, __half* x) { *x = __float2half(v); }

// Sixteen bytes of logits, moved at once where the address allows it.
template <typename T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T item[kSize];
};

// With a = (x - max) log2(e) / T: mass = sum 2^a, moment = sum 2^a a. No column yet: max -inf, mass 0.
struct Partial {
  float max, mass, moment;
};

__device__ inline float minus_infinity() { return -INFINITY; }

// `shift` moves a partial sum to a higher maximum, in log2 units.
__device__ inline void rebase(Partial* p, float max, float scale2) {
  if (p->max == minus_infinity()) {
    p->max = max;
    return;
  }
  const float shift = fmaxf((p->max - max) * scale2, kVanishing), factor = exp2f(shift);
  // fmaxf drops a NaN, which inf - inf makes; such a row has no distribution.
  const float kept = max == INFINITY ? NAN : factor;
  p->moment = (p->moment + p->mass * shift) * kept;
  p->mass *= kept;
  p->max = max;
}

__device__ inline Partial merged(Partial a, Partial b, float scale2) {
  const float max = fmaxf(a.max, b.max);
  if (max == minus_infinity()) return {max, a.mass + b.mass, 0.0f};
  rebase(&a, max, scale2);
  rebase(&b, max, scale2);
  return {max, a.mass + b.mass, a.moment + b.moment};
}

template <int kCount>
__device__ inline void add_columns(Partial* p, const float* x, float scale2) {
  float max = p->max;
  bool nan = false;
  for (int k = 0; k < kCount; ++k) {
    max = fmaxf(max, x[k]);
    nan |= x[k] != x[k];
  }
  if (nan) p->mass = NAN;
  if (max == minus_infinity()) return;
  if (max != p->max) rebase(p, max, scale2);
  for (int k = 0; k < kCount; ++k) {
    const float a = (x[k] - max) * scale2, kept = a < kVanishing ? kVanishing : a, e = exp2f(kept);
    p->mass += e;
    p->moment += e * kept;
  }
}

// Columns begin to end of a row by the block's threads; the order depends on the columns only.
template <typename T, int kThreads>
__device__ Partial scan_columns(const T* x, int64_t begin, int64_t end, float scale2) {
  constexpr int kSize = Pack<T>::kSize;
  Partial p{minus_infinity(), 0.0f, 0.0f};
  int64_t tail = begin;
  if (reinterpret_cast<uintptr_t>(x + begin) % 16 == 0) {
    const int64_t packs = (end - begin) / kSize;
    for (int64_t i = threadIdx.x; i < packs; i += kThreads) {
      const Pack<T> pack = reinterpret_cast<const Pack<T>*>(x + begin)[i];
      float values[kSize];
      for (int k = 0; k < kSize; ++k) values[k] = to_float(pack.item[k]);
      add_columns<kSize>(&p, values, scale2);
    }
    tail = begin + packs * kSize;
  }
  for (int64_t i = tail + threadIdx.x; i < end; i += kThreads) {
    const float value = to_float(x[i]);
    add_columns<1>(&p, &value, scale2);
  }
  return p;
}

// Every thread's partial into thread 0's, in a fixed tree.
template <int kThreads>
__device__ Partial reduce_block(Partial p, float scale2) {
  ADAPT_SHARED Partial warps[kThreads / kWarp];
  for (int step = kWarp / 2; step > 0; step /= 2) {
    Partial other;
    other.max = __shfl_down_sync(0xffffffffu, p.max, step);
    other.mass = __shfl_down_sync(0xffffffffu, p.mass, step);
    other.moment = __shfl_down_sync(0xffffffffu, p.moment, step);
    p = merged(p, other, scale2);
  }
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = p;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int w = 1; w < kThreads / kWarp; ++w) p = merged(p, warps[w], scale2);
  __syncthreads();
  return p;
}

// With y = (x - max) / T: mass = sum e^y, moment = sum e^y y.
struct RowStatistics {
  double max, mass, moment;
};

__device__ inline double log_mass(const RowStatistics& s) { return log(s.mass); }
__device__ inline double entropy_of(const RowStatistics& s) { return log(s.mass) - s.moment / s.mass; }

__device__ inline float log2_scale(double temperature) {
  const double scale = 1.4426950408889634074 / temperature;
  return scale < 3.4028234663852886e38 ? float(scale) : 3.4028234663852886e38f;
}

template <typename T>
__device__ float token_logprob(const T* x, int64_t n, int64_t id, const RowStatistics& s, double temperature) {
  if (id < 0 || id >= n || !(s.mass > 0)) return NAN;
  return float((double(to_float(x[id])) - s.max) / temperature - log_mass(s));
}

struct GradientRow {
  float max, scale2, level, tilt, vanished;
  double at_token;
  bool any;
};

template <typename T>
__device__ GradientRow gradient_row(const T* x, int64_t n, int64_t id, const RowStatistics& s, double temperature,
                                    double logprob_slope, double entropy_slope) {
  const double unit = 1 / (temperature * s.mass);
  GradientRow g;
  g.any = logprob_slope != 0 || entropy_slope != 0;
  g.max = float(s.max);
  g.scale2 = log2_scale(temperature);
  g.level = float((entropy_slope * (s.moment / s.mass) - logprob_slope) * unit);
  g.tilt = float(-entropy_slope * kLn2 * unit);
  g.vanished = g.level != g.level ? g.level : 0.0f;
  g.at_token = 0;
  if (id >= 0 && id < n) {
    const double y = (double(to_float(x[id])) - s.max) / temperature, logprob = y - log_mass(s), p = exp(logprob);
    const double bend = p == 0 ? 0 : p * (y - s.moment / s.mass);
    g.at_token = (-logprob_slope * expm1(logprob) - entropy_slope * bend) / temperature;
  }
  return g;
}

__device__ inline float gradient_at(float x, const GradientRow& g) {
  const float a = (x - g.max) * g.scale2;
  if (a < kVanishing) return g.vanished;
  return exp2f(a) * (g.tilt == 0 ? g.level : g.level + g.tilt * a);
}

// The whole row by the block's threads; `out` may be `x`, column by column.
template <typename T, int kThreads>
__device__ void write_gradient(const T* x, T* out, int64_t n, int64_t id, const GradientRow& g, bool zeroed) {
  constexpr int kSize = Pack<T>::kSize;
  if (!g.any && zeroed) return;
  int64_t tail = 0;
  if ((reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(out)) % 16 == 0) {
    const int64_t packs = n / kSize;
    for (int64_t i = threadIdx.x; i < packs; i += kThreads) {
      Pack<T> pack{};
      if (g.any) {
        pack = reinterpret_cast<const Pack<T>*>(x)[i];
        for (int k = 0; k < kSize; ++k) {
          const float v = i * kSize + k == id ? float(g.at_token) : gradient_at(to_float(pack.item[k]), g);
          from_float(v, &pack.item[k]);
        }
      }
      reinterpret_cast<Pack<T>*>(out)[i] = pack;
    }
    tail = packs * kSize;
  }
  for (int64_t i = tail + threadIdx.x; i < n; i += kThreads) {
    const float v = !g.any ? 0.0f : i == id ? float(g.at_token) : gradient_at(to_float(x[i]), g);
    from_float(v, out + i);
  }
}

template <typename T>
__device__ inline const T* row_at(const LogitRows& rows, int64_t i) {
  return static_cast<const T*>(rows.data) + rows.offset(i);
}

template <typename T>
__device__ inline T* row_at(const GradientRows& rows, int64_t i) {
  return static_cast<T*>(rows.data) + rows.offset(i);
}

}  // namespace adapt
