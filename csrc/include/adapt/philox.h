// The random stream of adapt_kernels; the published definition is adapt_kernels/philox_reference.py.
#pragma once
#include <cmath>
#include <cstdint>

namespace adapt {

constexpr int kGroupSize = 128;
constexpr uint32_t kPurposeGroup = 0;
constexpr uint32_t kPurposeToken = 1;

// 64 random bits at (seed, step, purpose, item): the first two words of Philox4x32-10.
inline uint64_t random_bits(uint64_t seed, uint32_t step, uint32_t purpose, uint64_t item) {
  uint32_t c0 = uint32_t(item), c1 = uint32_t(item >> 32), c2 = step, c3 = purpose;
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * c0, p1 = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
    c1 = uint32_t(p1);
    c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c3 = uint32_t(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return uint64_t(c0) << 32 | c1;
}

// In (0, 1): (bits + 0.5) / 2^64, at most 1 - 2^-53.
inline double uniform(uint64_t bits) {
  const double u = (double(uint32_t(bits >> 32)) * 0x1p32 + double(uint32_t(bits)) + 0.5) * 0x1p-64;
  return u < 1 - 0x1p-53 ? u : 1 - 0x1p-53;
}

inline double gumbel(double u) { return -std::log(-std::log1p(-u)); }

inline uint64_t mix64(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

inline uint64_t row_seed(uint64_t seed, uint64_t row) {
  return row == 0 ? seed : mix64(mix64(seed) + row * 0x9E3779B97F4A7C15ull);
}

}  // namespace adapt
