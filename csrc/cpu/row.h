// What one row of mode_sample is, and the pieces both of its paths share.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "adapt/mode_sample.h"
#include "adapt/philox.h"

namespace adapt {

constexpr double kInf = std::numeric_limits<double>::infinity();

// One token that can be drawn: its id and tempered logit y = (x - max) / T.
struct Candidate {
  int64_t id;
  double y;
};

struct RowSettings {
  double temperature;  // 0 = greedy
  int64_t top_k;
  double top_p, min_p;
  uint64_t seed;
  uint32_t step;
  bool at_mode, only_modes;
  const double* bias;  // [num_modes] or null
  double fast_prob;
  int64_t forced;
  const int64_t* mode_ids;
  int64_t num_modes;
  bool any_other;

  bool restricted() const { return at_mode && only_modes; }
  bool exact_probability() const { return restricted() && !std::isnan(fast_prob); }
  bool greedy() const { return temperature == 0 && !exact_probability(); }
  double scale() const { return temperature == 0 ? 1.0 : temperature; }
  bool limits_k(int64_t vocab_size) const { return !restricted() && top_k > 0 && top_k < vocab_size; }
  bool limits_p() const { return !restricted() && top_p < 1; }
  bool limits_min_p() const { return !restricted() && min_p > 0; }
};

struct RowResult {
  int64_t token;
  double logprob, raw_logprob, tempered_logprob;
  int32_t kept, flags;
};

// A row as NaN-free floats padded with -inf to whole groups, and its group maxima.
struct RowValues {
  std::vector<float> x;
  std::vector<float> group_max;
  int64_t vocab_size, num_groups, finite;
  float max;
  int32_t flags;
};

// Buffers one thread reuses from row to row.
struct Scratch {
  RowValues values;
  std::vector<double> y, mass, histogram;
  std::vector<float> numbers, sorted;
  std::vector<Candidate> candidates;
};

// -inf wins over +inf, as a logit and as a bias.
inline double biased(double x, double bias) { return x == -kInf || bias == -kInf ? -kInf : x + bias; }

// Draws among candidates in id order by the two-level race; their y share one offset. Empty: -1.
inline int64_t draw_candidates(const std::vector<Candidate>& candidates, uint64_t seed, uint32_t step) {
  double best_score = -kInf;
  size_t best_begin = 0, best_end = 0;
  for (size_t begin = 0, end; begin < candidates.size(); begin = end) {
    const int64_t group = candidates[begin].id / kGroupSize;
    double mass = 0;
    for (end = begin; end < candidates.size() && candidates[end].id / kGroupSize == group; ++end)
      mass += std::exp(candidates[end].y);
    const double score = std::log(mass) + gumbel(uniform(random_bits(seed, step, kPurposeGroup, group)));
    if (score > best_score) best_score = score, best_begin = begin, best_end = end;
  }
  int64_t token = -1;
  best_score = -kInf;
  for (size_t i = best_begin; i < best_end; ++i) {
    const double score = candidates[i].y + gumbel(uniform(random_bits(seed, step, kPurposeToken, candidates[i].id)));
    if (score > best_score) best_score = score, token = candidates[i].id;
  }
  return token;
}

// How many of n values, sorted descending, top_p keeps: each with less than `wanted` mass strictly above its value,
// at least one, equal values together. `mass` holds the mass above the first value, and grows by what is kept.
template <typename Value, typename Weight>
inline size_t nucleus_size(const Value* sorted, size_t n, Weight weight, double wanted, double* mass) {
  size_t kept = 0;
  while (kept < n && (kept == 0 || *mass < wanted || sorted[kept] == sorted[kept - 1])) *mass += weight(sorted[kept++]);
  return kept;
}

RowResult sample_exact(const RowSettings& settings, Scratch& scratch, float* mode_probs);
RowResult sample_fast(const RowSettings& settings, Scratch& scratch, float* mode_probs);
bool fast_can_serve(const RowSettings& settings, const RowValues& values);

}  // namespace adapt
