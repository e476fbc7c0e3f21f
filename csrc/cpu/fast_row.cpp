// One row by vector code: exponentials in float32 where a log-prob is all that depends on them, in float64 where a cut
// does. Work is skipped only where a bound proves it cannot matter; a cut too close to call goes to the exact path.
#include "row.h"
#include "simd.h"

namespace adapt {
namespace {

constexpr double kLog2e = 1.4426950408889634074;
constexpr float kLowest = std::numeric_limits<float>::lowest();
// Up to this many top-k survivors are handled as a list.
constexpr int64_t kListLimit = 4096;
constexpr int kBuckets = 2048;
// Relative distance of a cut below which float64 rounding might decide it.
constexpr double kTooClose = 1e-10;

// The tempered view of a row: y(x) = (x - max) / T; `quick` multiplies instead, 1 ulp off.
struct Tempering {
  double max, scale, inverse = 1.0 / scale;
  double y(float x) const { return (double(x) - max) / scale; }
  double quick(float x) const { return (double(x) - max) * inverse; }
  f64x4 quick(const float* x) const { return (__builtin_convertvector(load<f32x4>(x), f64x4) - max) * inverse; }
};

struct Cut {
  float tau = kLowest;      // kept = {x >= tau}
  double kept_mass = -1.0;  // sum of e^y over kept; < 0 = not known yet
  bool decided = true;
};

// Groups whose largest weight is below e^-cut_of_row add less than 1e-11 of the mass, all together.
double negligible(const RowValues& row) { return std::log(double(row.vocab_size)) + 25.0; }

// Sums over one group of e^(x - max) and e^((x - max) / T), float32.
void group_masses(const float* x, float max, float scale2, bool same, float* raw, float* tempered) {
  f32x8 raw_sum{}, tempered_sum{};
  for (int i = 0; i < kGroupSize; i += 8) {
    const f32x8 d = load<f32x8>(x + i) - max;
    raw_sum += exp2_fast(d * float(kLog2e));
    if (!same) tempered_sum += exp2_fast(d * scale2);
  }
  *raw = sum(raw_sum);
  *tempered = same ? *raw : sum(tempered_sum);
}

// Masses of the whole row; bound[g] becomes an upper bound of group g's tempered mass.
void row_masses(const RowValues& row, double scale, bool tempered_too, std::vector<double>& bound, double* raw,
                double* tempered) {
  const double cut = negligible(row);
  const bool same = scale == 1.0 || !tempered_too;
  bound.resize(row.num_groups);
  *raw = *tempered = 0;
  for (int64_t g = 0; g < row.num_groups; ++g) {
    const double gap = double(row.group_max[g]) - row.max;
    const bool raw_matters = gap >= -cut, tempered_matters = tempered_too && gap / scale >= -cut;
    float raw_mass = 0, tempered_mass = 0;
    if (raw_matters || tempered_matters)
      group_masses(row.x.data() + g * kGroupSize, row.max, float(kLog2e / scale), same, &raw_mass, &tempered_mass);
    if (raw_matters) *raw += raw_mass;
    if (tempered_matters) *tempered += tempered_mass;
    bound[g] = tempered_matters ? tempered_mass * 1.001 : kGroupSize * std::exp(gap / scale);
  }
}

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

// Mass by bucket of -y, float64, over tokens of at least `floor`; also the group masses.
double fill_histogram(const RowValues& row, const Tempering& t, float floor, double reach, Scratch& scratch) {
  std::vector<double>& histogram = scratch.histogram;
  histogram.assign(kBuckets + 1, 0.0);
  scratch.mass.resize(row.num_groups);
  const double to_bucket = kBuckets / reach;
  double total = 0;
  for (int64_t g = 0; g < row.num_groups; ++g) {
    const double gap = t.quick(row.group_max[g]);
    scratch.mass[g] = kGroupSize * std::exp(gap);
    if (gap < -reach || row.group_max[g] < floor) continue;
    double weights[kGroupSize];
    int32_t buckets[kGroupSize];
    f64x4 mass{};
    for (int i = 0; i < kGroupSize; i += 4) {
      const float* x = row.x.data() + g * kGroupSize + i;
      const f64x4 y = t.quick(x);
      const f64x4 deep = y < -reach ? splat(-reach) : y;
      const i64x4 in = __builtin_convertvector(load<f32x4>(x) >= floor, i64x4);
      const f64x4 w = in ? exp_accurate(y) : splat(0.0);
      store(weights + i, w);
      store(buckets + i, __builtin_convertvector(deep * -to_bucket, i32x4));
      mass += w;
    }
    for (int i = 0; i < kGroupSize; ++i) histogram[buckets[i]] += weights[i];
    scratch.mass[g] = sum(mass) * 1.001;
    total += sum(mass);
  }
  return total;
}

// top_p over the row: a histogram finds the bucket that holds the cut, sorting that bucket finds the cut.
Cut cut_nucleus(const RowSettings& s, const RowValues& row, const Tempering& t, float floor, Scratch& scratch,
                double* total) {
  const double reach = negligible(row), to_bucket = kBuckets / reach;
  *total = fill_histogram(row, t, floor, reach, scratch);
  const double wanted = s.top_p * *total;
  Cut cut;
  int bucket = 0;
  cut.kept_mass = 0;
  for (int b = 0; b <= kBuckets; ++b) {
    if (scratch.histogram[b] == 0) continue;
    bucket = b;
    if (cut.kept_mass + scratch.histogram[b] >= wanted) break;
    cut.kept_mass += scratch.histogram[b];
  }
  // The last bucket may hold tokens of groups that were passed over.
  if (bucket >= kBuckets - 1) cut.decided = false;
  std::vector<float>& inside = scratch.numbers;
  inside.clear();
  // A little wider than the bucket: y / T rounds; the bucket number itself decides.
  const float low = std::max(floor, float(t.max - (bucket + 1.001) * reach / kBuckets * t.scale));
  const float high = float(t.max - (bucket - 0.001) * reach / kBuckets * t.scale);
  const float slack = 4e-7f * std::max(std::fabs(low), std::fabs(high));
  for (int64_t g = 0; g < row.num_groups && cut.decided; ++g) {
    if (row.group_max[g] < low - slack) continue;
    for (int64_t i = g * kGroupSize; i < (g + 1) * kGroupSize; i += 8) {
      const f32x8 v = load<f32x8>(row.x.data() + i);
      const i32x8 near = (v >= low - slack) & (v <= high + slack);
      for (int j = 0; j < 8; ++j)
        if (near[j] && v[j] >= floor && int(t.quick(v[j]) * -to_bucket) == bucket) inside.push_back(v[j]);
    }
  }
  if (inside.empty()) cut.decided = false;
  if (!cut.decided) return cut;
  std::sort(inside.begin(), inside.end(), std::greater<float>());
  const auto weight = [&t](float x) { return std::exp(t.y(x)); };
  const size_t kept = nucleus_size(inside.data(), inside.size(), weight, wanted, &cut.kept_mass);
  cut.tau = inside[kept - 1];
  // The kept mass below the cut and above it must both be clear of the wanted mass.
  double before = cut.kept_mass;
  for (size_t i = kept; i-- > 0 && inside[i] == cut.tau;) before -= weight(inside[i]);
  cut.decided = std::fabs(cut.kept_mass - wanted) > kTooClose * *total && std::fabs(before - wanted) > kTooClose * *total;
  return cut;
}

// The smallest float that min_p keeps, by the same float64 comparison the reference makes.
float min_p_threshold(const RowSettings& s, const Tempering& t) {
  const auto keeps = [&](float x) { return std::exp(t.y(x)) >= s.min_p; };
  const float highest = float(t.max);
  float x = std::min(highest, float(std::max(t.max + t.scale * std::log(s.min_p), double(kLowest))));
  while (!keeps(x)) x = std::nextafter(x, highest);
  while (x > kLowest && keeps(std::nextafter(x, kLowest))) x = std::nextafter(x, kLowest);
  return x;
}

int64_t count_kept(const RowValues& row, float tau) {
  if (tau == kLowest) return row.finite;
  int64_t count = 0;
  for (int64_t g = 0; g < row.num_groups; ++g) {
    if (row.group_max[g] < tau) continue;
    i32x8 inside{};
    for (int64_t i = g * kGroupSize; i < (g + 1) * kGroupSize; i += 8) inside -= load<f32x8>(row.x.data() + i) >= tau;
    for (int j = 0; j < 8; ++j) count += inside[j];
  }
  return count;
}

double group_kept_mass(const float* x, const Tempering& t, float tau, double* weights) {
  f64x4 mass{};
  for (int i = 0; i < kGroupSize; i += 4) {
    const i64x4 in = __builtin_convertvector(load<f32x4>(x + i) >= tau, i64x4);
    const f64x4 w = in ? exp_accurate(t.quick(x + i)) : splat(0.0);
    store(weights + i, w);
    mass += w;
  }
  return sum(mass);
}

double kept_mass(const RowValues& row, const Tempering& t, float tau) {
  double mass = 0, weights[kGroupSize];
  for (int64_t g = 0; g < row.num_groups; ++g)
    if (row.group_max[g] >= tau) mass += group_kept_mass(row.x.data() + g * kGroupSize, t, tau, weights);
  return mass;
}

// The two-level race over {x >= tau}. An arrival time is -log1p(-u) / mass >= u / bound, so a group (or token) whose
// lower bound is past the best time so far needs no exponential and no logarithm.
int64_t draw_wide(const RowSettings& s, const RowValues& row, const Tempering& t, float tau,
                  const std::vector<double>& bound) {
  double best = -kInf, best_time = kInf, weights[kGroupSize], winner[kGroupSize];
  int64_t group = 0;
  for (int64_t g = 0; g < row.num_groups; ++g) {
    if (row.group_max[g] < tau) continue;
    const double u = uniform(random_bits(s.seed, s.step, kPurposeGroup, uint64_t(g)));
    if (u > best_time * bound[g]) continue;
    const double score = std::log(group_kept_mass(row.x.data() + g * kGroupSize, t, tau, weights)) + gumbel(u);
    if (score > best) {
      best = score, group = g, best_time = std::exp(-score) * 1.000001;
      std::copy(weights, weights + kGroupSize, winner);
    }
  }
  best = -kInf, best_time = kInf;
  int64_t token = 0;
  for (int i = 0; i < kGroupSize; ++i) {
    const int64_t id = group * kGroupSize + i;
    if (!(row.x[id] >= tau)) continue;
    const double u = uniform(random_bits(s.seed, s.step, kPurposeToken, uint64_t(id)));
    if (u > best_time * winner[i] * 1.001) continue;
    const double score = t.y(row.x[id]) + gumbel(u);
    if (score > best) best = score, token = id, best_time = std::exp(-score) * 1.000001;
  }
  return token;
}

void write_mode_probs(const RowSettings& s, const RowValues& row, float* mode_probs) {
  double peak = -kInf, total = 0;
  for (int64_t m = 0; m < s.num_modes; ++m) peak = std::max(peak, double(row.x[s.mode_ids[m]]));
  if (peak != -kInf)
    for (int64_t m = 0; m < s.num_modes; ++m) total += std::exp(row.x[s.mode_ids[m]] - peak);
  for (int64_t m = 0; m < s.num_modes; ++m)
    mode_probs[m] = total == 0 ? 0.0f : float(std::exp(row.x[s.mode_ids[m]] - peak) / total);
}

double log_or_lowest(float x, double log_mass, const Tempering& t) {
  return x == -__builtin_inff() ? -kInf : t.y(x) - log_mass;
}

// No token can be drawn; a forced one is still scored.
RowResult empty_row(const RowSettings& s, Scratch& scratch) {
  const RowValues& row = scratch.values;
  RowResult r{0, 0, -kInf, -kInf, 0, row.flags | kFlagEmpty};
  if (s.restricted()) r.token = *std::min_element(s.mode_ids, s.mode_ids + s.num_modes);
  if (s.forced < 0) return r;
  r.token = s.forced;
  r.logprob = -kInf;
  double raw_mass, unused;
  row_masses(row, 1.0, false, scratch.mass, &raw_mass, &unused);
  r.raw_logprob = log_or_lowest(row.x[r.token], std::log(raw_mass), {row.max, 1.0});
  return r;
}

RowResult sample_plain(const RowSettings& s, Scratch& scratch, float* mode_probs) {
  const RowValues& row = scratch.values;
  const Tempering t{row.max, s.scale()}, untempered{row.max, 1.0};
  const bool listed = s.limits_k(row.vocab_size) && s.top_k <= kListLimit;
  const bool nucleus = !s.greedy() && !listed && s.limits_p();
  double raw_mass = 0, mass = 0;
  // The nucleus path sums the tempered mass itself, in float64; at T = 1 that is the raw mass too.
  const bool shared_mass = nucleus && t.scale == 1.0 && !s.limits_k(row.vocab_size);
  if (!shared_mass) row_masses(row, t.scale, !nucleus, scratch.mass, &raw_mass, &mass);
  Cut cut;
  RowResult r{0, 0, 0, 0, 0, row.flags};
  if (s.greedy()) {
    cut.tau = row.max;
    r.token = std::find(row.x.begin(), row.x.end(), row.max) - row.x.begin();
    r.kept = 1;
  } else if (listed) {
    gather(row, t, kth_largest(row, s.top_k, scratch.numbers), scratch.candidates);
    cut = cut_list(s, scratch);
    r.token = draw_candidates(scratch.candidates, s.seed, s.step);
    r.kept = int32_t(scratch.candidates.size());
  } else {
    if (s.limits_k(row.vocab_size)) cut.tau = kth_largest(row, s.top_k, scratch.numbers);
    if (nucleus) {
      const float floor = cut.tau;
      cut = cut_nucleus(s, row, t, floor, scratch, &mass);
      if (!cut.decided) return sample_exact(s, scratch, mode_probs);
      if (floor != kLowest) mass = kept_mass(row, t, kLowest);
      if (shared_mass) raw_mass = mass;
    }
    if (s.limits_min_p()) {
      const float tau = min_p_threshold(s, t);
      if (tau > cut.tau) cut.tau = tau, cut.kept_mass = -1;
    }
    if (cut.kept_mass < 0) cut.kept_mass = cut.tau == kLowest ? mass : kept_mass(row, t, cut.tau);
    r.token = draw_wide(s, row, t, cut.tau, scratch.mass);
    r.kept = int32_t(count_kept(row, cut.tau));
  }
  const int64_t drawn = r.token;
  if (s.forced >= 0) r.token = s.forced;
  const float x = row.x[r.token];
  bool inside = s.greedy() ? r.token == drawn : x >= cut.tau;
  if (listed && !s.greedy())
    inside = std::any_of(scratch.candidates.begin(), scratch.candidates.end(),
                         [&r](const Candidate& c) { return c.id == r.token; });
  r.logprob = !inside ? -kInf : s.greedy() ? 0.0 : t.y(x) - std::log(cut.kept_mass);
  r.raw_logprob = log_or_lowest(x, std::log(raw_mass), untempered);
  r.tempered_logprob = log_or_lowest(x, std::log(mass), t);
  return r;
}

// P(first candidate) = fast_prob; the others keep their proportions.
void set_exact_probability(const RowSettings& s, std::vector<Candidate>& list) {
  const auto peak_from = [&list](size_t first) {
    double peak = -kInf;
    for (size_t m = first; m < list.size(); ++m) peak = std::max(peak, list[m].y);
    return peak;
  };
  const double rest_peak = peak_from(1);
  if (rest_peak == -kInf) return;
  double rest = 0;
  for (size_t m = 1; m < list.size(); ++m) rest += std::exp(list[m].y - rest_peak);
  // Subtracting the peak first keeps the probability exact when the others lie far below mode 0.
  for (Candidate& c : list) c.y = c.y - rest_peak - std::log(rest) + std::log1p(-s.fast_prob);
  list[0].y = std::log(s.fast_prob);
  const double peak = peak_from(0);
  for (Candidate& c : list) c.y -= peak;
}

// Only the modes can be drawn: a handful of candidates, whatever the vocabulary.
RowResult sample_restricted(const RowSettings& s, Scratch& scratch) {
  const RowValues& row = scratch.values;
  std::vector<Candidate>& list = scratch.candidates;
  list.clear();
  double peak = -kInf;
  for (int64_t m = 0; m < s.num_modes; ++m) {
    const double x = row.x[s.mode_ids[m]];
    list.push_back({s.mode_ids[m], biased(x, s.bias ? s.bias[m] : 0.0)});
    peak = std::max(peak, list.back().y);
  }
  if (peak == -kInf) return empty_row(s, scratch);
  for (Candidate& c : list) {
    if (peak == kInf) c.y = c.y == kInf ? 0.0 : -kInf;
    else if (c.y != -kInf) c.y = (c.y - peak) / s.scale();
  }
  if (s.exact_probability()) {
    set_exact_probability(s, list);
  }
  std::sort(list.begin(), list.end(), [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  double raw_mass, unused, mass = 0;
  row_masses(row, 1.0, false, scratch.mass, &raw_mass, &unused);
  for (const Candidate& c : list) mass += std::exp(c.y);
  RowResult r{0, 0, 0, 0, 0, row.flags};
  const auto best = std::max_element(list.begin(), list.end(),
                                     [](const Candidate& a, const Candidate& b) { return a.y < b.y; });
  const int64_t drawn = s.greedy() ? best->id : draw_candidates(list, s.seed, s.step);
  for (const Candidate& c : list) r.kept += c.y > -kInf;
  if (s.greedy()) r.kept = 1;
  r.token = s.forced >= 0 ? s.forced : drawn;
  double y = -kInf;
  for (const Candidate& c : list)
    if (c.id == r.token) y = c.y;
  r.tempered_logprob = y - std::log(mass);
  r.logprob = !s.greedy() ? r.tempered_logprob : r.token == drawn ? 0.0 : -kInf;
  r.raw_logprob = log_or_lowest(row.x[r.token], std::log(raw_mass), {row.max, 1.0});
  return r;
}

}  // namespace

bool fast_can_serve(const RowSettings& s, const RowValues& row) {
  const bool biased_everywhere = s.at_mode && !s.only_modes && s.bias;
  const bool nearly_all = s.limits_p() && s.top_p > 1 - 1e-9;
  const bool ordinary_scale = s.scale() >= 1e-30 && s.scale() <= 1e30;
  return !(row.flags & kFlagInf) && !s.any_other && !biased_everywhere && !nearly_all && ordinary_scale;
}

RowResult sample_fast(const RowSettings& s, Scratch& scratch, float* mode_probs) {
  if (s.num_modes) write_mode_probs(s, scratch.values, mode_probs);
  if (s.restricted() && scratch.values.max != -__builtin_inff()) return sample_restricted(s, scratch);
  if (scratch.values.max == -__builtin_inff()) return empty_row(s, scratch);
  return sample_plain(s, scratch, mode_probs);
}

}  // namespace adapt
