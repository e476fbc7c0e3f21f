// Eight floats or four doubles at a time through the compiler's vector types, so one source serves every ISA.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__F16C__) || defined(__FMA__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace adapt {

typedef float f32x8 __attribute__((vector_size(32)));
typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef uint16_t u16x8 __attribute__((vector_size(16)));
typedef double f64x4 __attribute__((vector_size(32)));
typedef int64_t i64x4 __attribute__((vector_size(32)));
typedef float f32x4 __attribute__((vector_size(16)));
typedef int32_t i32x4 __attribute__((vector_size(16)));

template <typename V, typename T>
inline V load(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}

template <typename V, typename T>
inline void store(T* p, V v) {
  std::memcpy(p, &v, sizeof(V));
}

inline f32x8 splat(float x) { return f32x8{x, x, x, x, x, x, x, x}; }
inline f64x4 splat(double x) { return f64x4{x, x, x, x}; }

struct Float32 {
  static constexpr int kBytes = 4;
  static f32x8 load8(const void* p) { return load<f32x8>(static_cast<const float*>(p)); }
  static float load1(const void* p) { return load<float>(static_cast<const float*>(p)); }
};

struct Bfloat16 {
  static constexpr int kBytes = 2;
  static f32x8 load8(const void* p) {
#if defined(__AVX2__)
    // One instruction, where the compiler's own conversion takes four.
    const __m256i wide = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))), 16);
#else
    const i32x8 wide = __builtin_convertvector(load<u16x8>(static_cast<const uint16_t*>(p)), i32x8) << 16;
#endif
    return load<f32x8>(&wide);
  }
  static float load1(const void* p) {
    const uint32_t wide = uint32_t(load<uint16_t>(static_cast<const uint16_t*>(p))) << 16;
    return load<float>(&wide);
  }
};

struct Float16 {
  static constexpr int kBytes = 2;
  static float load1(const void* p) { return float(load<_Float16>(static_cast<const _Float16*>(p))); }
  static f32x8 load8(const void* p) {
#if defined(__F16C__)
    const __m256 wide = _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p)));
    return load<f32x8>(&wide);
#else
    f32x8 v;
    for (int i = 0; i < 8; ++i) v[i] = load1(static_cast<const char*>(p) + 2 * i);
    return v;
#endif
  }
};

inline f32x8 fma(f32x8 a, f32x8 b, f32x8 c) {
#if defined(__FMA__)
  const __m256 r = _mm256_fmadd_ps(load<__m256>(&a), load<__m256>(&b), load<__m256>(&c));
  return load<f32x8>(&r);
#else
  for (int i = 0; i < 8; ++i) c[i] = std::fma(a[i], b[i], c[i]);
  return c;
#endif
}

// 2^f for |f| <= 0.5, relative error 1.1e-7, roundings included.
inline f32x8 exp2_fraction(f32x8 f) {
  f32x8 p = splat(1.535336188319500e-4f);
  p = p * f + 1.339887440266574e-3f;
  p = p * f + 9.618437357674640e-3f;
  p = p * f + 5.550332471162809e-2f;
  p = p * f + 2.402264791363012e-1f;
  p = p * f + 6.931472028550421e-1f;
  return p * f + 1.0f;
}

// The same with one step less, relative error 2.5e-7; 1 at 0.
inline f32x8 exp2_fraction_fast(f32x8 f) {
  f32x8 p = splat(1.327647197931638e-3f);
  p = p * f + 9.675541334206542e-3f;
  p = p * f + 5.550713273542824e-2f;
  p = p * f + 2.402211972384870e-1f;
  p = p * f + 6.931469670647334e-1f;
  return p * f + 1.0f;
}

// p * 2^n, n being the integer in the low bits of `shifted` (rounded by adding 1.5 * 2^23).
inline f32x8 scale_by_power(f32x8 p, f32x8 shifted) {
  const i32x8 bits = load<i32x8>(&p) + (load<i32x8>(&shifted) << 23);
  return load<f32x8>(&bits);
}

// The larger; NaN stays NaN.
inline f32x8 at_least(f32x8 a, float low) {
#if defined(__AVX__)
  const f32x8 lows = splat(low);
  const __m256 r = _mm256_max_ps(load<__m256>(&lows), load<__m256>(&a));
  return load<f32x8>(&r);
#else
  return a < low ? splat(low) : a;
#endif
}

// Where 2^a is too small for a float: exp2_clamped(kVanishing) == 0.
constexpr float kVanishing = -127.0f;

// 2^a for kVanishing <= a <= 0, relative error 2.5e-7 beside the rounding of a; below -126 at most 2^-126.
inline f32x8 exp2_clamped(f32x8 a) {
  const f32x8 shifted = a + 12582912.0f;
  return scale_by_power(exp2_fraction_fast(a - (shifted - 12582912.0f)), shifted);
}

// The same for any a <= 0.
inline f32x8 exp2_fast(f32x8 a) { return exp2_clamped(at_least(a, kVanishing)); }

// e^y for y <= 0, relative error 1e-14; 0 below -700.
inline f64x4 exp_accurate(f64x4 y) {
  const i64x4 vanishes = y < -700.0;
  y = vanishes ? splat(-700.0) : y;
  const f64x4 shifted = y * 1.4426950408889634074 + 6755399441055744.0;
  const f64x4 n = shifted - 6755399441055744.0;
  f64x4 f = y - n * 6.93147180369123816490e-01;
  f = f - n * 1.90821492927058770002e-10;
  f64x4 p = splat(1.0 / 39916800);
  p = p * f + 1.0 / 3628800;
  p = p * f + 1.0 / 362880;
  p = p * f + 1.0 / 40320;
  p = p * f + 1.0 / 5040;
  p = p * f + 1.0 / 720;
  p = p * f + 1.0 / 120;
  p = p * f + 1.0 / 24;
  p = p * f + 1.0 / 6;
  p = p * f + 0.5;
  p = p * f + 1.0;
  p = p * f + 1.0;
  const i64x4 bits = load<i64x4>(&p) + (load<i64x4>(&shifted) << 52);
  return vanishes ? splat(0.0) : load<f64x4>(&bits);
}

inline float sum(f32x8 v) {
  return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}

// sums[0] += sum(a), sums[1] += sum(b), each summed in float32 in the order of sum().
inline void add_sums(f32x8 a, f32x8 b, double* sums) {
#if defined(__AVX__)
  const __m256 pairs = _mm256_hadd_ps(load<__m256>(&a), load<__m256>(&b));
  const __m128 fours = _mm_hadd_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
  const __m128 both = _mm_add_ps(fours, _mm_movehl_ps(fours, fours));
  _mm_storeu_pd(sums, _mm_add_pd(_mm_loadu_pd(sums), _mm_cvtps_pd(both)));
#else
  sums[0] += sum(a);
  sums[1] += sum(b);
#endif
}

inline double sum(f64x4 v) { return (v[0] + v[1]) + (v[2] + v[3]); }

struct f64x8 {
  f64x4 first, second;
  void operator+=(f64x8 v) { first += v.first, second += v.second; }
};

inline f64x8 widen(f64x8 v) { return v; }
inline f64x8 widen(f32x8 v) {
  return {__builtin_convertvector(f32x4{v[0], v[1], v[2], v[3]}, f64x4),
          __builtin_convertvector(f32x4{v[4], v[5], v[6], v[7]}, f64x4)};
}
inline double sum(f64x8 v) { return sum(v.first) + sum(v.second); }

inline f32x8 where(i32x8 mask, f32x8 v) { return mask ? v : splat(0.0f); }
inline f64x8 where(i32x8 mask, f64x8 v) {
  const i32x4 first{mask[0], mask[1], mask[2], mask[3]}, second{mask[4], mask[5], mask[6], mask[7]};
  return {__builtin_convertvector(first, i64x4) ? v.first : splat(0.0),
          __builtin_convertvector(second, i64x4) ? v.second : splat(0.0)};
}

}  // namespace adapt
