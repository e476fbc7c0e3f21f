// Reading and writing the three types logits come in, eight at a time.
#pragma once
#include "simd.h"

namespace adapt {

// To nearest, ties to even; NaN stays NaN.
inline u16x8 to_bfloat16(f32x8 v) {
  const i32x8 bits = load<i32x8>(&v);
  const i32x8 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const i32x8 nan = v != v, kept = nan ? i32x8{} + 0x7fc0 : rounded & 0xffff;
#if defined(__SSE4_1__)
  const auto halves = reinterpret_cast<const __m128i*>(&kept);
  const __m128i packed = _mm_packus_epi32(halves[0], halves[1]);
  return load<u16x8>(&packed);
#else
  return __builtin_convertvector(kept, u16x8);
#endif
}

template <typename V>
inline void stream(void* p, V v) {
#if defined(__AVX__)
  if (sizeof(V) == 32) _mm256_stream_si256(static_cast<__m256i*>(p), load<__m256i>(&v));
  else _mm_stream_si128(static_cast<__m128i*>(p), load<__m128i>(&v));
#else
  store(static_cast<char*>(p), v);
#endif
}

struct Float32Logits : Float32 {
  static void store8(char* p, f32x8 v) { store(p, v); }
  static void stream8(char* p, f32x8 v) { stream(p, v); }
  static void store1(char* p, float v) { store(p, v); }
};

struct Bfloat16Logits : Bfloat16 {
  static void store8(char* p, f32x8 v) { store(p, to_bfloat16(v)); }
  static void stream8(char* p, f32x8 v) { stream(p, to_bfloat16(v)); }
  static void store1(char* p, float v) { store(p, uint16_t(to_bfloat16(splat(v))[0])); }
};

struct Float16Logits : Float16 {
  static u16x8 convert(f32x8 v) {
#if defined(__F16C__)
    const __m128i half = _mm256_cvtps_ph(load<__m256>(&v), _MM_FROUND_TO_NEAREST_INT);
    return load<u16x8>(&half);
#else
    u16x8 half;
    for (int i = 0; i < 8; ++i) {
      const _Float16 one = _Float16(v[i]);
      half[i] = load<uint16_t>(&one);
    }
    return half;
#endif
  }
  static void store8(char* p, f32x8 v) { store(p, convert(v)); }
  static void stream8(char* p, f32x8 v) { stream(p, convert(v)); }
  static void store1(char* p, float v) { store(p, _Float16(v)); }
};

}  // namespace adapt
