// A row's softmax statistics, and any gradient that goes through its log-prob and entropy: one thread's arithmetic.
// The same quantities as csrc/cpu/softmax_row.h.
#pragma once
#include "adapt/rows.h"
#include "launch.cuh"

namespace adapt {

constexpr int kWarp = 32;
constexpr float kVanishing = -126.0f;
// Where |max log2(e) / T| stays below it, rounding that product moves a power by a factor of 2 at most.
constexpr float kLargestShift = 16777216.0f;
// What a slope may be, so that times kVanishing it is a number: nothing times infinity would be NaN.
constexpr float kLargestSlope = 1e36f;
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

template <typename T>
__device__ inline Pack<T> load_pack(const T* place) {
  return *reinterpret_cast<const Pack<T>*>(place);
}

// As one word: left to itself the compiler stores 16-bit items two by two.
template <typename T>
__device__ inline void store_pack(const Pack<T>& pack, T* place) {
  uint4 word;
  memcpy(&word, &pack, sizeof word);
  *reinterpret_cast<uint4*>(place) = word;
}

__device__ inline uint32_t pair_word(float a, float b, const __nv_bfloat16*) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  uint32_t word;
  memcpy(&word, &pair, sizeof word);
  return word;
}
__device__ inline uint32_t pair_word(float a, float b, const __half*) {
  const __half2 pair = __floats2half2_rn(a, b);
  uint32_t word;
  memcpy(&word, &pair, sizeof word);
  return word;
}

// Sixteen bytes that are not read again soon.
__device__ inline void store_word(uint4 word, void* place) {
#if defined(__CUDA_ARCH__)
  __stcs(static_cast<uint4*>(place), word);
#else
  *static_cast<uint4*>(place) = word;
#endif
}

// Rounded to the type of `place`, two at a time.
template <typename T>
__device__ inline void store_floats(const float (&v)[8], T* place) {
  store_word({pair_word(v[0], v[1], place), pair_word(v[2], v[3], place), pair_word(v[4], v[5], place),
              pair_word(v[6], v[7], place)},
             place);
}
__device__ inline void store_floats(const float (&v)[4], float* place) {
  uint4 word;
  memcpy(&word, v, sizeof word);
  store_word(word, place);
}

// Column k of sixteen bytes.
__device__ inline uint32_t word_of(const uint4& pack, int k) {
  return k == 0 ? pack.x : k == 1 ? pack.y : k == 2 ? pack.z : pack.w;
}
__device__ inline float of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
__device__ inline float column_of(const uint4& pack, int k, const float*) { return of_bits(word_of(pack, k)); }
__device__ inline float column_of(const uint4& pack, int k, const __nv_bfloat16*) {
  const uint32_t word = word_of(pack, k / 2);
  return of_bits(k % 2 ? word & 0xffff0000u : word << 16);
}
__device__ inline float column_of(const uint4& pack, int k, const __half*) {
  const uint32_t word = word_of(pack, k / 2);
  const uint16_t bits = uint16_t(k % 2 ? word >> 16 : word);
  __half value;
  memcpy(&value, &bits, sizeof value);
  return to_float(value);
}

// With a = (x - max) log2(e) / T: mass = sum 2^a, moment = sum 2^a a. No column yet: max -inf, mass 0.
struct Partial {
  float max, mass, moment;
};

__device__ inline float minus_infinity() { return -INFINITY; }

// 2^a for a >= kVanishing: the device's own instruction, without the care that exp2f takes of denormal results.
__device__ inline float power_of_two(float a) {
#if defined(__CUDA_ARCH__)
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(a));
  return power;
#else
  return exp2f(a);
#endif
}

// `shift` moves a partial sum to a higher maximum, in log2 units.
__device__ inline void rebase(Partial* p, float max, float scale2) {
  if (p->max == minus_infinity()) {
    p->max = max;
    return;
  }
  const float shift = fmaxf((p->max - max) * scale2, kVanishing), factor = power_of_two(shift);
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

// With y = (x - max) / T: mass = sum e^y, moment = sum e^y y.
struct RowStatistics {
  double max, mass, moment;
};

__device__ inline double log_mass(const RowStatistics& s) { return log(s.mass); }
__device__ inline double entropy_of(const RowStatistics& s) { return log(s.mass) - s.moment / s.mass; }

// log2(e) / T; a refined guess where that is a plain number, which spares a row the division.
__device__ inline float log2_scale(double temperature) {
  if (temperature > 1e-37 && temperature < 1e37) {
    const double guess = 1.0f / float(temperature);
    return float(1.4426950408889634074 * (guess + guess * (1 - temperature * guess)));
  }
  return float(fmin(fmax(1.4426950408889634074 / temperature, 1.1754943508222875e-38), 3.4028234663852886e38));
}

// The logit of a row's token; read before the row may be written over.
struct TokenLogit {
  double value;
  bool inside;  // the id is a column of the row
};

template <typename T>
__device__ inline TokenLogit token_logit(const T* x, int64_t n, int64_t id) {
  if (id < 0 || id >= n) return {0, false};
  return {double(to_float(x[id])), true};
}

__device__ inline float token_logprob(const TokenLogit& token, const RowStatistics& s, double temperature) {
  if (!token.inside || !(s.mass > 0)) return NAN;
  return float((token.value - s.max) / temperature - log_mass(s));
}

struct GradientRow {
  float max, scale2, level, tilt, vanished;
  float at_token;
  bool any, fused;  // fused: plain numbers, for which max scale2 may be rounded before it is subtracted
};

__device__ inline GradientRow gradient_row(const TokenLogit& token, const RowStatistics& s, double temperature,
                                           double logprob_slope, double entropy_slope) {
  const double unit = 1 / (temperature * s.mass);
  GradientRow g;
  g.any = logprob_slope != 0 || entropy_slope != 0;
  g.max = float(s.max);
  g.scale2 = log2_scale(temperature);
  g.level = float((entropy_slope * (s.moment / s.mass) - logprob_slope) * unit);
  g.tilt = float(-entropy_slope * kLn2 * unit);
  g.vanished = g.level != g.level ? g.level : 0.0f;
  g.fused = g.any && fabsf(g.max * g.scale2) < kLargestShift && fabsf(g.level) < kLargestSlope &&
            fabsf(g.tilt) < kLargestSlope;
  g.at_token = 0;
  if (token.inside) {
    const double y = (token.value - s.max) / temperature, logprob = y - log_mass(s), p = exp(logprob);
    const double bend = p == 0 ? 0 : p * (y - s.moment / s.mass);
    g.at_token = float((-logprob_slope * expm1(logprob) - entropy_slope * bend) / temperature);
  }
  return g;
}

__device__ inline float column_gradient(float x, bool is_token, const GradientRow& g) {
  const float a = (x - g.max) * g.scale2;
  const float other = a < kVanishing ? g.vanished : power_of_two(a) * (g.tilt == 0 ? g.level : g.level + g.tilt * a);
  return is_token ? g.at_token : other;
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
