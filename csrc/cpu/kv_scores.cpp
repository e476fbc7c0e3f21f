// kv_scores on the CPU: for every key the newest one similar to it, from the newest block of columns backwards. No
// matrix of all pairs is written, and a key that has found its like looks no further.
#include "adapt/kv_scores.h"

#include <algorithm>
#include <vector>

#include "simd.h"

namespace adapt {
namespace {

constexpr int kLanes = 8, kBlock = 32, kVectors = kBlock / kLanes, kKeys = 2;

// Keys of one head, block by block: [blocks, width, kBlock]. A block fits the nearest cache, and each of its columns is
// loaded once for kKeys keys.
struct Keys {
  const float* unit;
  int64_t width;

  const float* block(int64_t first) const { return unit + first * width; }
  const float* key(int64_t i) const { return block(i / kBlock * kBlock) + i % kBlock; }
};

// Cosines of kKeys keys from i on, which share a block, with the columns of a block; similar: whether any of each is.
void block_cosines(const Keys& keys, int64_t i, int64_t first, float bar, float (*cosines)[kBlock], bool* similar) {
  f32x8 sums[kKeys][kVectors];
  for (auto& of_key : sums)
    for (f32x8& sum : of_key) sum = splat(0.0f);
  const float *own = keys.key(i), *row = keys.block(first);
  for (int64_t d = 0; d < keys.width; ++d, own += kBlock, row += kBlock) {
    for (int v = 0; v < kVectors; ++v) {
      const f32x8 columns = load<f32x8>(row + v * kLanes);
      for (int n = 0; n < kKeys; ++n) sums[n][v] = fma(splat(own[n]), columns, sums[n][v]);
    }
  }
  for (int n = 0; n < kKeys; ++n) {
    i32x8 any = sums[n][0] > splat(bar);
    for (int v = 1; v < kVectors; ++v) any |= sums[n][v] > splat(bar);
    similar[n] = false;
    for (int lane = 0; lane < kLanes; ++lane) similar[n] |= any[lane] != 0;
    if (similar[n])
      for (int v = 0; v < kVectors; ++v) store(cosines[n] + v * kLanes, sums[n][v]);
  }
}

// Takes the cosines of keys i to i + kKeys - 1, each with the newest key similar to it, out of that one's sum.
void forgive_newest(const Keys& keys, int64_t i, float bar, std::vector<double>& sums) {
  float cosines[kKeys][kBlock], found[kKeys];
  bool similar[kKeys];
  int64_t newest[kKeys];
  std::fill(newest, newest + kKeys, -1);
  int missing = kKeys;
  for (int64_t first = int64_t(sums.size()) - kBlock; first >= 0 && missing; first -= kBlock) {
    block_cosines(keys, i, first, bar, cosines, similar);
    for (int n = 0; n < kKeys; ++n) {
      for (int k = kBlock - 1; k >= 0 && similar[n] && newest[n] < 0; --k) {
        if (first + k == i + n || !(cosines[n][k] > bar)) continue;
        newest[n] = first + k;
        found[n] = cosines[n][k];
        --missing;
      }
    }
  }
  for (int n = 0; n < kKeys; ++n)
    if (newest[n] >= 0) sums[newest[n]] -= found[n];
}

void score_head(const SimilarKeysArguments& a, int64_t head) {
  const Keys keys{a.unit + head * a.width * a.padded, a.width};
  std::vector<double> sums(a.padded, 0.0);
  for (int64_t d = 0; d < a.width; ++d) {
    double all = 0;
    for (int64_t j = 0; j < a.length; ++j) all += keys.key(j)[d * kBlock];
    for (int64_t j = 0; j < a.length; ++j) {
      const float own = keys.key(j)[d * kBlock];
      sums[j] += (all - own) * own;
    }
  }
  // Keys beyond the length are 0, and similar to none.
  for (int64_t i = 0; i < a.length; i += kKeys) forgive_newest(keys, i, float(a.similar), sums);
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
