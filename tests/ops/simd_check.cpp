// Prints the largest relative errors of the exponentials, and exits with 1 where a sum or a corner is wrong.
#include <cstdio>
#include <initializer_list>

#include "simd.h"

using namespace adapt;

int main() {
  double error = 0, error_fast = 0;
  for (int64_t i = -(1 << 22); i <= 1 << 22; i += 8) {
    f32x8 f;
    for (int j = 0; j < 8; ++j) f[j] = std::fmin(float(double(i + j) / (1 << 23)), 0.5f);
    const f32x8 p = exp2_fraction(f), fast = exp2_fraction_fast(f);
    for (int j = 0; j < 8; ++j) {
      const double exact = std::exp2(double(f[j]));
      error = std::fmax(error, std::fabs(p[j] / exact - 1));
      error_fast = std::fmax(error_fast, std::fabs(fast[j] / exact - 1));
    }
  }
  for (float a : {-1e30f, -__builtin_inff(), -127.0f})
    if (exp2_fast(splat(a))[0] != 0) return 1;
  for (int n = 0; n > -126; --n)
    if (exp2_fast(splat(float(n)))[0] != std::ldexp(1.0f, n)) return 1;
  if (!std::isnan(at_least(splat(__builtin_nanf("")), kVanishing)[0])) return 1;
  const f32x8 a{1, 1e8f, -1e8f, 3, 1e-3f, 7, -2e7f, 5}, b = a * 1.1f;
  double sums[2] = {0.25, -4};
  add_sums(a, b, sums);
  if (sums[0] != 0.25 + sum(a) || sums[1] != -4.0 + sum(b)) return 1;
  std::printf("%.3g %.3g\n", error, error_fast);
}
