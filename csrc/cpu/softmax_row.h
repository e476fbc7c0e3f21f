// One row's softmax statistics, and any gradient that goes through its log-prob and entropy.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "adapt/rows.h"
#include "number_types.h"

namespace adapt {

constexpr double kLn2 = 0.69314718055994530942;
constexpr double kLog2E = 1.4426950408889634074;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
// Columns summed in float32 before they join a float64 sum; the gate's groups, so that log-probs agree to the bit.
constexpr int kGroup = 128;

// With y = (x - max) / T: mass = sum e^y, moment = sum e^y y. A row without a distribution has mass NaN, or 0 if all of
// it is -inf; log-prob, entropy and gradient are NaN either way.
struct RowStatistics {
  double max, mass, moment;
  double log_mass() const { return std::log(mass); }
  double entropy() const { return log_mass() - moment / mass; }
};

// log2(e) / T as a factor that keeps 0 * factor = 0 and inf * factor = inf for any T.
inline float log2_scale(double temperature) {
  using Limits = std::numeric_limits<float>;
  return float(std::clamp(kLog2E / temperature, double(Limits::min()), double(Limits::max())));
}

// NaN does not count.
template <typename Type>
float row_max(const char* p, int64_t n) {
  constexpr int kLanes = 4;
  f32x8 lanes[kLanes];
  for (f32x8& lane : lanes) lane = splat(-__builtin_inff());
  int64_t i = 0;
  for (; i + 8 * kLanes <= n; i += 8 * kLanes) {
    for (int k = 0; k < kLanes; ++k) {
      const f32x8 x = Type::load8(p + (i + 8 * k) * Type::kBytes);
      lanes[k] = x > lanes[k] ? x : lanes[k];
    }
  }
  float max = -__builtin_inff();
  for (; i < n; ++i) max = std::max(max, Type::load1(p + i * Type::kBytes));
  for (const f32x8& lane : lanes)
    for (int j = 0; j < 8; ++j) max = lane[j] > max ? lane[j] : max;
  return max;
}

template <typename Type>
bool has_nan(const char* p, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    if (std::isnan(Type::load1(p + i * Type::kBytes))) return true;
  return false;
}

// sums += (mass, moment / ln 2) of a group.
template <typename Load>
inline void add_group(Load load8, float max, float scale2, double* sums) {
  f32x8 mass{}, moment{};
  for (int i = 0; i < kGroup; i += 8) {
    const f32x8 a = at_least((max - load8(i)) * -scale2, kVanishing);
    const f32x8 e = exp2_clamped(a);
    mass += e;
    moment = fma(e, a, moment);
  }
  add_sums(mass, moment, sums);
}

// `ahead`: a row that is fetched from memory meanwhile; arithmetic alone leaves the memory idle.
template <typename Type>
RowStatistics row_statistics(const char* p, int64_t n, double temperature, const char* ahead) {
  const float max = row_max<Type>(p, n), scale2 = log2_scale(temperature);
  if (max == -__builtin_inff()) return {max, has_nan<Type>(p, n) ? kNaN : 0.0, 0.0};
  if (!std::isfinite(max)) return {max, kNaN, kNaN};
  double sums[2]{};
  const int64_t whole = n / kGroup * kGroup;
  for (int64_t g = 0; g < whole; g += kGroup) {
    for (int i = 0; i < kGroup * Type::kBytes; i += 64) __builtin_prefetch(ahead + g * Type::kBytes + i, 0, 2);
    add_group([&](int i) { return Type::load8(p + (g + i) * Type::kBytes); }, max, scale2, sums);
  }
  if (whole < n) {
    float rest[kGroup];
    for (int i = 0; i < kGroup; ++i)
      rest[i] = whole + i < n ? Type::load1(p + (whole + i) * Type::kBytes) : -__builtin_inff();
    add_group([&](int i) { return load<f32x8>(rest + i); }, max, scale2, sums);
  }
  // A NaN that row_max passed over is in the moment.
  return {max, std::isnan(sums[1]) ? kNaN : sums[0], sums[1] * kLn2};
}

// NaN for an id outside the row.
template <typename Type>
float token_logprob(const char* p, int64_t n, int64_t id, const RowStatistics& statistics, double temperature) {
  if (id < 0 || id >= n || !(statistics.mass > 0)) return float(kNaN);
  return float((double(Type::load1(p + id * Type::kBytes)) - statistics.max) / temperature - statistics.log_mass());
}

template <typename Type>
inline const char* row_at(const LogitRows& rows, int64_t i) {
  return static_cast<const char*>(rows.data) + rows.offset(i) * Type::kBytes;
}

template <typename Type>
inline char* row_at(const GradientRows& rows, int64_t i) {
  return static_cast<char*>(rows.data) + rows.offset(i) * Type::kBytes;
}

// The row that the thread at row i probably takes next; row i itself if there is none.
template <typename Type>
inline const char* row_ahead(const LogitRows& rows, const bool* mask, int64_t i, int threads) {
  for (int64_t next = i + threads; next < rows.count; ++next)
    if (!mask || mask[next]) return row_at<Type>(rows, next);
  return row_at<Type>(rows, i);
}

// Past the caches it pays not to read what is about to be overwritten.
inline bool past_caches(const GradientRows& rows, int bytes) {
  return rows.count * rows.vocab_size * bytes > (int64_t(8) << 20);
}

// Calls value(i, lanes of x at i) for the whole row and writes what it returns; `x` may be `out`.
template <typename Type, bool kReads, bool kStream, typename Value>
void write_row(const char* x, char* out, int64_t n, Value value) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const f32x8 v = value(kReads ? Type::load8(x + i * Type::kBytes) : f32x8{});
    if (kStream) Type::stream8(out + i * Type::kBytes, v);
    else Type::store8(out + i * Type::kBytes, v);
  }
  if (i == n) return;
  f32x8 last{};
  for (int64_t j = i; j < n && kReads; ++j) last[j - i] = Type::load1(x + j * Type::kBytes);
  last = value(last);
  for (int64_t j = i; j < n; ++j) Type::store1(out + j * Type::kBytes, last[j - i]);
}

template <typename Type, bool kReads, typename Value>
void write_row(const char* x, char* out, int64_t n, bool stream, Value value) {
  const bool aligned = reinterpret_cast<uintptr_t>(out) % (8 * Type::kBytes) == 0;
  if (stream && aligned) write_row<Type, kReads, true>(x, out, n, value);
  else write_row<Type, kReads, false>(x, out, n, value);
}

template <typename Type>
void write_zeros(char* out, int64_t n, bool stream) {
  write_row<Type, false>(out, out, n, stream, [](f32x8 v) { return v; });
}

// gradient = d loss / d x for a loss that depends on the row through its log-prob and its entropy.
template <typename Type>
void write_gradient(const char* x, char* out, int64_t n, int64_t id, const RowStatistics& s, double temperature,
                    double logprob_slope, double entropy_slope, bool stream) {
  const float max = float(s.max), scale2 = log2_scale(temperature);
  const double unit = 1 / (temperature * s.mass);
  const float level = float((entropy_slope * (s.moment / s.mass) - logprob_slope) * unit);
  const float tilt = float(-entropy_slope * kLn2 * unit);
  // Before the row is written: it may be written over itself.
  const bool inside = id >= 0 && id < n;
  double at_token = 0;
  if (inside) {
    const double y = (double(Type::load1(x + id * Type::kBytes)) - s.max) / temperature, logprob = y - s.log_mass();
    const double p = std::exp(logprob), bend = p == 0 ? 0 : p * (y - s.moment / s.mass);
    at_token = (-logprob_slope * std::expm1(logprob) - entropy_slope * bend) / temperature;
  }
  if (entropy_slope == 0) {
    write_row<Type, true>(x, out, n, stream, [=](f32x8 v) {
      return exp2_clamped(at_least((max - v) * -scale2, kVanishing)) * level;
    });
  } else {
    write_row<Type, true>(x, out, n, stream, [=](f32x8 v) {
      const f32x8 a = at_least((max - v) * -scale2, kVanishing);
      return exp2_clamped(a) * fma(a, splat(tilt), splat(level));
    });
  }
  if (inside) {
#if defined(__SSE__)
    _mm_sfence();  // the streamed row must be there before one of its columns is corrected
#endif
    Type::store1(out + id * Type::kBytes, float(at_token));
  }
}

}  // namespace adapt
