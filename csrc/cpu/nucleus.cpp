// top_p over a whole row. A sample guesses a bracket around the cut; one pass sums what lies above it and lists what lies
// inside; the list decides. Weights come in float32 with a proven error bound; a cut closer than that bound is redone with
// float64 weights, and one closer than float64 rounding is left to the exact path.
#include "tempering.h"

namespace adapt {
namespace {

constexpr int kSampleBuckets = 2048, kListBuckets = 512;
// Eights of tokens that the guess looks at.
constexpr int64_t kSampledEights = 600;
// A group below the bracket whose largest weight is under e^-6 is summed by rougher arithmetic: its error counts little.
constexpr double kRoughGap = 6, kRoughError = 1e-5;
// The guess is widened by this many standard errors. A miss costs a second pass, never the result.
constexpr double kStandardErrors = 4;

// x to e^((x - max) / T), in float32.
struct Float32Weights {
  typedef f32x8 Vector;
  static constexpr bool kRoughToo = true;
  // Of a sum of four: 1.2e-7 of each, and three roundings.
  static constexpr double kError = 3e-7;
  float max, high, low;
  explicit Float32Weights(const Tempering& t)
      : max(float(t.max)), high(float(kLog2e / t.scale)), low(float(kLog2e / t.scale - high)) {}

  // Relative error below 1.2e-7: the subtraction and the scale are carried in two floats each.
  f32x8 operator()(f32x8 x) const {
    const f32x8 d = x - max, back = d - x;
    const f32x8 error = (x - (d - back)) + (-max - back);
    const f32x8 a = d * high, shifted = a + 12582912.0f, n = shifted - 12582912.0f;
    const f32x8 f = fma(d, splat(high), -n) + fma(d, splat(low), error * high);
    return a < -126.0f ? splat(0.0f) : scale_by_power(exp2_fraction(f), shifted);
  }
};

// The same in float64.
struct Float64Weights {
  typedef f64x8 Vector;
  static constexpr bool kRoughToo = false;
  static constexpr double kError = 1e-12;
  const Tempering& t;
  explicit Float64Weights(const Tempering& tempering) : t(tempering) {}
  f64x8 operator()(f32x8 x) const {
    float values[8];
    store(values, x);
    return {exp_accurate(t.quick(values)), exp_accurate(t.quick(values + 4))};
  }
};

// Tokens in [low, high] are listed, those above `high` only summed.
struct Bracket {
  float low, high;
};

// rough: the part of `total` summed by rougher arithmetic. raw: untempered mass, where T is not 1.
struct Sums {
  double total = 0, above = 0, rough = 0, raw = 0;
  int64_t num_above = 0;
};

// Buckets of equal width from `high` down; the last one also holds everything below.
struct Buckets {
  float high, per_unit;
  int last;
  Buckets(float top, double width, int count) : high(top), per_unit(float((count - 1) / width)), last(count - 1) {}
  i32x8 operator()(f32x8 x) const {
    const f32x8 b = (high - x) * per_unit;
    return __builtin_convertvector(b < float(last) ? b : splat(float(last)), i32x8);
  }
  float lower_edge(int b) const { return b >= last ? kLowest : high - float(b + 1) / per_unit; }
};

// Weights by bucket: of all group maxima into `exact`, and of a sample of the other tokens, scaled up to all of them, into
// `sampled`. Returns the scale.
float take_sample(const RowValues& row, const Float32Weights& weight, const Buckets& bucket_of, float floor,
                  std::vector<double>& exact, std::vector<double>& sampled) {
  const int64_t stride = (row.num_groups + kSampledEights - 1) / kSampledEights;
  const int64_t eights = std::min<int64_t>(16, std::max<int64_t>(1, kSampledEights / row.num_groups));
  const float scale = 16.0f * stride / eights;
  exact.assign(kSampleBuckets, 0.0);
  sampled.assign(kSampleBuckets, 0.0);
  const auto add = [&](f32x8 v, i32x8 mask, float factor, std::vector<double>& histogram) {
    const f32x8 w = where(mask & (v >= floor), weight(v) * factor);
    const i32x8 b = bucket_of(v);
    for (int j = 0; j < 8; ++j) histogram[b[j]] += w[j];
  };
  for (int64_t g = 0; g < row.num_groups; g += 8) {
    float peaks[8];
    for (int j = 0; j < 8; ++j) peaks[j] = g + j < row.num_groups ? row.group_max[g + j] : -__builtin_inff();
    const f32x8 v = load<f32x8>(peaks);
    add(v, v == v, 1.0f, exact);
  }
  for (int64_t g = 0; g < row.num_groups; g += stride)
    for (int64_t e = 0; e < eights; ++e) {
      const f32x8 v = load<f32x8>(row.x.data() + g * kGroupSize + (g / stride + e * 16 / eights) % 16 * 8);
      add(v, v < row.group_max[g], scale, sampled);
    }
  return scale;
}

// The first bucket where the running sum reaches `wanted`; *before is the sum ahead of it.
int bucket_reaching(const std::vector<double>& histogram, double wanted, double* before) {
  int bucket = 0;
  *before = 0;
  for (int b = 0; b < int(histogram.size()); ++b) {
    if (histogram[b] == 0) continue;
    bucket = b;
    if (*before + histogram[b] >= wanted) break;
    *before += histogram[b];
  }
  return bucket;
}

Bracket guess_bracket(const RowValues& row, const RowSettings& s, const Tempering& t, float floor, double reach,
                      Scratch& scratch) {
  const double width = reach * t.scale, p = s.top_p;
  const Buckets bucket_of(row.max, width, kSampleBuckets);
  std::vector<double>&weights = scratch.histogram, &sampled = scratch.y;
  const float scale = take_sample(row, Float32Weights(t), bucket_of, floor, weights, sampled);
  double total = 0, unused, above = 0, squares_above = 0, squares_below = 0;
  for (int b = 0; b < kSampleBuckets; ++b) total += weights[b] += sampled[b];
  // Variance of (mass above the cut) - p * (all mass): a sampled token above enters by 1 - p, one below by -p.
  for (int b = 0; b < kSampleBuckets; above += weights[b++])
    if (sampled[b] > 0)
      (above < p * total ? squares_above : squares_below) += sampled[b] * scale * std::exp(-b * reach / kSampleBuckets);
  const double margin = kStandardErrors * std::sqrt((1 - p) * (1 - p) * squares_above + p * p * squares_below);
  const int first = bucket_reaching(weights, p * total - margin, &unused);
  const int last = bucket_reaching(weights, p * total + margin, &unused);
  return {std::max(floor, bucket_of.lower_edge(last)), first == 0 ? row.max : bucket_of.lower_edge(first - 1)};
}

template <typename Weights>
f64x8 group_mass(const float* x, const Weights& weight, float floor) {
  f64x8 mass{};
  for (int i = 0; i < kGroupSize; i += 32) {
    typename Weights::Vector four{};
    for (int k = i; k < i + 32; k += 8) {
      const f32x8 v = load<f32x8>(x + k);
      four += floor == kLowest ? weight(v) : where(v >= floor, weight(v));
    }
    mass += widen(four);
  }
  return mass;
}

// The same for a group that may hold tokens of the bracket: these are appended at `end`, whose new value is returned. What
// lies above the bracket is summed apart, so that its rounding moves sums->above and the total alike.
template <typename Weights>
float* list_group(const float* x, const Weights& weight, float floor, Bracket bracket, float* end, f64x8* mass,
                  Sums* sums) {
  f64x8 above{};
  i32x8 count{};
  for (int i = 0; i < kGroupSize; i += 32) {
    typename Weights::Vector four{}, four_above{};
    for (int k = i; k < i + 32; k += 8) {
      const f32x8 v = load<f32x8>(x + k);
      const auto w = floor == kLowest ? weight(v) : where(v >= floor, weight(v));
      const i32x8 over = v > bracket.high, inside = (v >= bracket.low) & ~over;
      four += where(~over, w);
      four_above += where(over, w);
      count -= over;
      if (!any(inside)) continue;
      for (int j = 0; j < 8; ++j) *end = v[j], end -= inside[j];
    }
    *mass += widen(four);
    above += widen(four_above);
  }
  *mass += above;
  sums->above += sum(above);
  for (int j = 0; j < 8; ++j) sums->num_above += count[j];
  return end;
}

// Untempered mass of a group, for a log-prob only.
float raw_mass(const float* x, float max) {
  f32x8 lanes{};
  for (int i = 0; i < kGroupSize; i += 8) lanes += exp2_fast((load<f32x8>(x + i) - max) * float(kLog2e));
  return sum(lanes);
}

// One pass over the groups that matter; fills scratch.numbers with the tokens inside the bracket, and scratch.mass with
// upper bounds of the group masses.
template <typename Weights>
Sums sum_and_list(const RowValues& row, const Tempering& t, float floor, double reach, Bracket bracket,
                  Scratch& scratch) {
  const Weights weight(t);
  Sums sums;
  std::vector<float>& listed = scratch.numbers;
  listed.resize(row.x.size() + 8);
  scratch.mass.resize(row.num_groups);
  float* end = listed.data();
  const bool same = t.scale == 1.0, rough_too = Weights::kRoughToo && floor == kLowest;
  for (int64_t g = 0; g < row.num_groups; ++g) {
    const float peak = row.group_max[g], *x = row.x.data() + g * kGroupSize;
    const double gap = t.quick(peak);
    if (rough_too && peak < bracket.low && gap < -kRoughGap && gap >= -reach) {
      float raw, rough;
      group_masses(x, row.max, float(kLog2e / t.scale), same, &raw, &rough);
      scratch.mass[g] = rough * 1.001;
      sums.total += rough, sums.rough += rough, sums.raw += raw;
      continue;
    }
    if (!same && Weights::kRoughToo && double(peak) - row.max >= -reach) sums.raw += raw_mass(x, row.max);
    if (gap < -reach) {
      scratch.mass[g] = kGroupSize * std::exp(gap);
      continue;
    }
    f64x8 mass{};
    if (peak < bracket.low) mass = group_mass(x, weight, floor);
    else end = list_group(x, weight, floor, bracket, end, &mass, &sums);
    scratch.mass[g] = sum(mass) * 1.001;
    sums.total += sum(mass);
  }
  listed.resize(end - listed.data());
  return sums;
}

// The cut among `listed`, or which side of the bracket it lies on.
enum class Side { kInside, kAbove, kBelow };

template <typename Weights>
Side cut_listed(const Tempering& t, double top_p, const Sums& sums, Bracket bracket, double reach, Scratch& scratch,
                Cut* cut) {
  const Weights weight(t);
  std::vector<float>& listed = scratch.numbers;
  std::vector<double>& histogram = scratch.histogram;
  const double wanted = top_p * sums.total;
  if (sums.above >= wanted && sums.above > 0) return Side::kAbove;
  const size_t count = listed.size();
  const double width = std::min(double(bracket.high) - bracket.low, reach * t.scale);
  const Buckets bucket_of(bracket.high, std::max(width, 1e-30), kListBuckets);
  listed.resize((count + 7) / 8 * 8, -__builtin_inff());
  histogram.assign(kListBuckets, 0.0);
  double inside = 0;
  for (size_t i = 0; i < listed.size(); i += 8) {
    const f32x8 v = load<f32x8>(listed.data() + i);
    const i32x8 b = bucket_of(v);
    const f64x8 w = widen(weight(v));
    for (int j = 0; j < 4; ++j) histogram[b[j]] += w.first[j], histogram[b[j + 4]] += w.second[j];
    inside += sum(w);
  }
  if (sums.above + inside < wanted) return Side::kBelow;
  double mass;
  const int bucket = bucket_reaching(histogram, wanted - sums.above, &mass);
  std::vector<float>& sorted = scratch.sorted;
  sorted.clear();
  size_t earlier = 0;
  for (size_t i = 0; i < listed.size(); i += 8) {
    const i32x8 b = bucket_of(load<f32x8>(listed.data() + i)), here = b == bucket, before = b < bucket;
    for (int j = 0; j < 8; ++j) earlier -= before[j];
    if (!any(here)) continue;
    for (int j = 0; j < 8; ++j)
      if (here[j] && i + j < count) sorted.push_back(listed[i + j]);
  }
  std::sort(sorted.begin(), sorted.end(), std::greater<float>());
  mass += sums.above;
  // Of p * total - mass, by the parts above the bracket, the rest, and the listed; rough sums; and skipped groups.
  const double moved = (1 - top_p) * sums.above + top_p * (sums.total - sums.above) + (mass - sums.above);
  const double error = Weights::kError * moved + kRoughError * top_p * sums.rough + 1e-10 * sums.total;
  size_t kept = 0;
  double before = mass;
  while (kept < sorted.size() && (kept == 0 || mass < wanted)) {
    before = mass;
    cut->tau = sorted[kept];
    for (; kept < sorted.size() && sorted[kept] == cut->tau; ++kept) mass += std::exp(t.y(cut->tau));
  }
  cut->kept_mass = mass;
  cut->kept = sums.num_above + int64_t(earlier + kept);
  cut->decided = kept > 0 && mass - wanted > error && (wanted - before > error || before == 0);
  return Side::kInside;
}

template <typename Weights>
Cut cut_within(const RowSettings& s, const Tempering& t, float floor, double reach, Bracket bracket, Scratch& scratch,
               Sums* sums) {
  const RowValues& row = scratch.values;
  Cut cut;
  cut.decided = false;
  for (int pass = 0; pass < 2; ++pass) {
    *sums = sum_and_list<Weights>(row, t, floor, reach, bracket, scratch);
    const Side side = cut_listed<Weights>(t, s.top_p, *sums, bracket, reach, scratch, &cut);
    if (side == Side::kInside) break;
    if (side == Side::kAbove) bracket = {bracket.high, row.max};
    else bracket = {floor, bracket.low};
  }
  return cut;
}

}  // namespace

Cut cut_nucleus(const RowSettings& s, const Tempering& t, float floor, Scratch& scratch, double* raw, double* tempered) {
  const RowValues& row = scratch.values;
  const double reach = negligible(row);
  const Bracket bracket = guess_bracket(row, s, t, floor, reach, scratch);
  Sums sums;
  Cut cut = cut_within<Float32Weights>(s, t, floor, reach, bracket, scratch, &sums);
  *tempered = floor == kLowest ? sums.total : kept_mass(row, t, kLowest);
  *raw = t.scale == 1.0 ? *tempered : sums.raw;
  if (!cut.decided) cut = cut_within<Float64Weights>(s, t, floor, reach, bracket, scratch, &sums);
  return cut;
}

}  // namespace adapt
