// Thresholds of top_k, of min_p, and of all filters on a short list.
#include "tempering.h"

namespace adapt {

// The k-th largest value; `numbers` is scratch.
float kth_largest(const RowValues& row, int64_t k, std::vector<float>& numbers) {
  float lower = kLowest;
  if (k <= row.num_groups) {
    // k groups hold a value of at least the k-th largest group maximum, so no survivor is below it.
    numbers.assign(row.group_max.begin(), row.group_max.end());
    std::nth_element(numbers.begin(), numbers.begin() + (k - 1), numbers.end(), std::greater<float>());
    lower = std::max(lower, numbers[k - 1]);
  }
  numbers.clear();
  for (int64_t g = 0; g < row.num_groups; ++g)
    if (row.group_max[g] >= lower)
      for (int64_t i = g * kGroupSize; i < (g + 1) * kGroupSize; ++i)
        if (row.x[i] >= lower) numbers.push_back(row.x[i]);
  if (int64_t(numbers.size()) < k) return kLowest;
  std::nth_element(numbers.begin(), numbers.begin() + (k - 1), numbers.end(), std::greater<float>());
  return numbers[k - 1];
}

void gather(const RowValues& row, const Tempering& t, float tau, std::vector<Candidate>& out) {
  out.clear();
  for (int64_t g = 0; g < row.num_groups; ++g)
    if (row.group_max[g] >= tau)
      for (int64_t i = g * kGroupSize; i < (g + 1) * kGroupSize; ++i)
        if (row.x[i] >= tau) out.push_back({i, t.y(row.x[i])});
}

// top_p and min_p on a list of candidates in id order.
Cut cut_list(const RowSettings& s, Scratch& scratch) {
  std::vector<Candidate>& list = scratch.candidates;
  std::vector<double>& sorted = scratch.y;
  Cut cut;
  const auto weight = [](double y) { return std::exp(y); };
  double lowest_y = -std::numeric_limits<double>::max();
  if (s.limits_p()) {
    sorted.clear();
    for (const Candidate& c : list) sorted.push_back(c.y);
    std::sort(sorted.begin(), sorted.end(), std::greater<double>());
    double total = 0, mass = 0;
    for (double y : sorted) total += weight(y);
    lowest_y = sorted[nucleus_size(sorted.data(), sorted.size(), weight, s.top_p * total, &mass) - 1];
  }
  size_t kept = 0;
  cut.kept_mass = 0;
  for (const Candidate& c : list) {
    const double w = weight(c.y);
    if (c.y < lowest_y || (s.limits_min_p() && w < s.min_p)) continue;
    cut.kept_mass += w;
    list[kept++] = c;
  }
  list.resize(kept);
  return cut;
}

// Floats in the order of integers, so that halving the distance takes at most 32 steps wherever the floats lie.
static int64_t float_key(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits >= 0 ? bits : int64_t(INT32_MIN) - bits;
}

static float float_of_key(int64_t key) {
  const int32_t bits = int32_t(key >= 0 ? key : int64_t(INT32_MIN) - key);
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// The smallest float that min_p keeps, by the same float64 comparison the reference makes.
float min_p_threshold(const RowSettings& s, const Tempering& t) {
  int64_t dropped = float_key(kLowest) - 1, kept = float_key(float(t.max));
  while (kept - dropped > 1) {
    const int64_t middle = dropped + (kept - dropped) / 2;
    if (std::exp(t.y(float_of_key(middle))) >= s.min_p) kept = middle;
    else dropped = middle;
  }
  return float_of_key(kept);
}

}  // namespace adapt
