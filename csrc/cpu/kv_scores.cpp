// kv_scores on the CPU: for every key the newest one similar to it, from the newest block of columns backwards. No
// matrix of all pairs is written, and a key that has found its like looks no further.
#include "adapt/kv_scores.h"

#include <vector>

#include "simd.h"

namespace adapt {
namespace {

constexpr int kLanes = 8, kBlock = 64, kVectors = kBlock / kLanes;

// Cosines of key i with the columns of a block.
void block_cosines(const float* unit, int64_t width, int64_t padded, int64_t i, int64_t block, float* cosines) {
  f32x8 sums[kVectors];
  for (int v = 0; v < kVectors; ++v) sums[v] = splat(0.0f);
  for (int64_t d = 0; d < width; ++d) {
    const float* row = unit + d * padded;
    const f32x8 own = splat(row[i]);
    for (int v = 0; v < kVectors; ++v) sums[v] = fma(own, load<f32x8>(row + block + v * kLanes), sums[v]);
  }
  for (int v = 0; v < kVectors; ++v) store(cosines + v * kLanes, sums[v]);
}

// Takes key i's cosine with the newest key similar to it out of that one's sum.
void forgive_newest(const SimilarKeysArguments& a, const float* unit, int64_t i, std::vector<double>& sums) {
  float cosines[kBlock];
  for (int64_t block = a.padded - kBlock; block >= 0; block -= kBlock) {
    block_cosines(unit, a.width, a.padded, i, block, cosines);
    for (int k = kBlock - 1; k >= 0; --k) {
      if (block + k == i || !(cosines[k] > float(a.similar))) continue;
      sums[block + k] -= cosines[k];
      return;
    }
  }
}

void score_head(const SimilarKeysArguments& a, int64_t head) {
  const float* unit = a.unit + head * a.width * a.padded;
  std::vector<double> sums(a.padded, 0.0);
  for (int64_t d = 0; d < a.width; ++d) {
    const float* row = unit + d * a.padded;
    double all = 0;
    for (int64_t j = 0; j < a.length; ++j) all += row[j];
    for (int64_t j = 0; j < a.length; ++j) sums[j] += (all - row[j]) * row[j];
  }
  for (int64_t i = 0; i < a.length; ++i) forgive_newest(a, unit, i, sums);
  for (int64_t j = 0; j < a.length; ++j) a.mean[head * a.length + j] = float(sums[j] / double(a.length));
}

}  // namespace
}  // namespace adapt

extern "C" int adapt_similar_keys_cpu(const SimilarKeysArguments* arguments) {
  const SimilarKeysArguments& a = *arguments;
#pragma omp parallel for schedule(static) num_threads(a.threads) if (a.threads > 1 && a.heads > 1)
  for (int64_t head = 0; head < a.heads; ++head) adapt::score_head(a, head);
  return 0;
}
