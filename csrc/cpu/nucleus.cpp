// top_p over a whole row. Weights come in float32 with a proven error bound; a cut closer than that bound is redone with
// float64 weights, and one closer than float64 rounding is left to the exact path.
#include "tempering.h"

namespace adapt {
namespace {

constexpr int kBuckets = 2048;
// Groups whose maxima are tried as the whole nucleus before a histogram is made.
constexpr size_t kTopGroups = 64;
// Relative errors of a mass below which a cut is not trusted.
constexpr double kFloat32Error = 1.5e-7, kFloat64Error = 1e-10;

// x to e^((x - max) / T), eight at a time.
struct Float32Weights {
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

// Weights of the row into `weights`, group masses into scratch.mass; tokens below `floor` weigh nothing.
double weigh_float32(const RowValues& row, const Tempering& t, float floor, double reach, Scratch& scratch,
                     double* raw) {
  const Float32Weights weight(t);
  const bool same = t.scale == 1.0;
  double total = 0;
  *raw = 0;
  scratch.mass.resize(row.num_groups);
  scratch.weights.resize(row.x.size());
  for (int64_t g = 0; g < row.num_groups; ++g) {
    const double gap = double(row.group_max[g]) - row.max;
    const float* x = row.x.data() + g * kGroupSize;
    float* w = scratch.weights.data() + g * kGroupSize;
    const bool matters = gap * t.inverse >= -reach;
    if (!matters) std::fill(w, w + kGroupSize, 0.0f);
    f32x8 mass{}, raw_mass{};
    if (matters || gap >= -reach)
      for (int i = 0; i < kGroupSize; i += 8) {
        const f32x8 v = load<f32x8>(x + i), all = weight(v);
        const f32x8 kept = v >= floor ? all : splat(0.0f);
        if (matters) store(w + i, kept);
        mass += kept;
        raw_mass += same ? all : exp2_fast((v - row.max) * float(kLog2e));
      }
    *raw += sum(raw_mass);
    scratch.mass[g] = matters ? sum(mass) * 1.001 : kGroupSize * std::exp(gap * t.inverse);
    if (matters) total += sum(mass);
  }
  return total;
}

double weigh_float64(const RowValues& row, const Tempering& t, float floor, double reach, Scratch& scratch) {
  double total = 0;
  scratch.y.resize(row.x.size());
  for (int64_t g = 0; g < row.num_groups; ++g) {
    double* weights = scratch.y.data() + g * kGroupSize;
    if (t.quick(row.group_max[g]) < -reach) std::fill(weights, weights + kGroupSize, 0.0);
    else total += group_kept_mass(row.x.data() + g * kGroupSize, t, floor, weights);
  }
  return total;
}

// The cut among values sorted descending, with `above` mass over them; undecided if `wanted` is within `error` of it.
Cut cut_sorted(const std::vector<float>& sorted, const Tempering& t, double above, double wanted, double error) {
  Cut cut;
  if (sorted.empty()) {
    cut.decided = false;
    return cut;
  }
  const auto weight = [&t](float x) { return std::exp(t.y(x)); };
  cut.kept_mass = above;
  const size_t kept = nucleus_size(sorted.data(), sorted.size(), weight, wanted, &cut.kept_mass);
  cut.tau = sorted[kept - 1];
  double before = cut.kept_mass;
  for (size_t i = kept; i-- > 0 && sorted[i] == cut.tau;) before -= weight(sorted[i]);
  cut.decided = cut.kept_mass - wanted > error && (wanted - before > error || kept == 1);
  return cut;
}

// The nucleus lies in the top groups if their maxima alone carry the wanted mass: nothing below the smallest of them
// can have less than that mass above it.
bool top_groups_hold(const RowValues& row, const Tempering& t, double wanted, Scratch& scratch, float* lowest) {
  std::vector<float>& top = scratch.numbers;
  top.resize(std::min(kTopGroups, row.group_max.size()));
  std::partial_sort_copy(row.group_max.begin(), row.group_max.end(), top.begin(), top.end(), std::greater<float>());
  double mass = 0;
  for (float x : top) {
    mass += std::exp(t.y(x));
    *lowest = x;
    if (mass > wanted * (1 + 1e-6)) return true;
  }
  return false;
}

void gather_sorted(const RowValues& row, float low, float high, std::vector<float>& out) {
  out.clear();
  for (int64_t g = 0; g < row.num_groups; ++g) {
    if (row.group_max[g] < low) continue;
    for (int64_t i = g * kGroupSize; i < (g + 1) * kGroupSize; i += 8) {
      const f32x8 v = load<f32x8>(row.x.data() + i);
      const i32x8 inside = (v >= low) & (v <= high);
      if (!any(inside)) continue;
      for (int j = 0; j < 8; ++j)
        if (inside[j]) out.push_back(v[j]);
    }
  }
  std::sort(out.begin(), out.end(), std::greater<float>());
}

// Buckets of equal width in max - x. A bucket number is a monotone function of x, so buckets do not overlap.
struct Buckets {
  float max, per_unit;
  Buckets(const Tempering& t, double reach) : max(float(t.max)), per_unit(float(kBuckets / (reach * t.scale))) {}
  i32x8 operator()(f32x8 x) const {
    const f32x8 b = (max - x) * per_unit;
    return __builtin_convertvector(b < float(kBuckets) ? b : splat(float(kBuckets)), i32x8);
  }
  int operator()(float x) const { return (*this)(splat(x))[0]; }
};

// Mass in every bucket before the one where it first reaches `wanted`; *bucket is that one.
double mass_before(const std::vector<double>& histogram, double wanted, int* bucket) {
  double before = 0;
  *bucket = 0;
  for (int b = 0; b <= kBuckets; ++b) {
    if (histogram[b] == 0) continue;
    *bucket = b;
    if (before + histogram[b] >= wanted) break;
    before += histogram[b];
  }
  return before;
}

// A few buckets that should hold the cut, from every eighth group; all buckets for short rows.
template <typename Weight>
void guess_buckets(const RowValues& row, const Buckets& bucket_of, const Weight* weights, double top_p,
                   std::vector<double>& histogram, int* first, int* last) {
  constexpr int64_t kStride = 8;
  *first = 0, *last = kBuckets;
  if (row.num_groups < 32 * kStride) return;
  histogram.assign(kBuckets + 1, 0.0);
  double total = 0;
  for (int64_t g = 0; g < row.num_groups; g += kStride)
    for (int64_t i = g * kGroupSize; i < (g + 1) * kGroupSize; i += 8) {
      const i32x8 b = bucket_of(load<f32x8>(row.x.data() + i));
      for (int j = 0; j < 8; ++j) histogram[b[j]] += weights[i + j], total += weights[i + j];
    }
  // Four standard errors of a share measured on this many tokens, where weights are about even.
  const double margin = 4 * std::sqrt(top_p * (1 - top_p) / (row.num_groups / kStride * kGroupSize));
  mass_before(histogram, (top_p - margin) * total, first);
  mass_before(histogram, (top_p + margin) * total, last);
}

// Tokens in buckets first..last, in id order; returns the mass in earlier buckets.
template <typename Weight>
double collect(const RowValues& row, const Buckets& bucket_of, const Weight* weights, int first, int last,
               std::vector<int32_t>& inside) {
  double above = 0;
  inside.clear();
  for (int64_t g = 0; g < row.num_groups; ++g) {
    MaskedSum earlier;
    for (int64_t i = g * kGroupSize; i < (g + 1) * kGroupSize; i += 8) {
      const i32x8 b = bucket_of(load<f32x8>(row.x.data() + i)), before = b < first, within = (b <= last) & ~before;
      earlier.add(weights + i, before);
      if (!any(within)) continue;
      for (int j = 0; j < 8; ++j)
        if (within[j]) inside.push_back(int32_t(i + j));
    }
    above += earlier.total();
  }
  return above;
}

// Finds the bucket that holds the cut, then the cut by sorting that bucket.
template <typename Weight>
Cut cut_by_histogram(const RowSettings& s, const Tempering& t, double reach, const Weight* weights, double total,
                     double error, Scratch& scratch) {
  const RowValues& row = scratch.values;
  const Buckets bucket_of(t, reach);
  const double wanted = s.top_p * total;
  std::vector<double>& histogram = scratch.histogram;
  int first, last, bucket;
  guess_buckets(row, bucket_of, weights, s.top_p, histogram, &first, &last);
  double above = collect(row, bucket_of, weights, first, last, scratch.inside);
  histogram.assign(kBuckets + 1, 0.0);
  for (int32_t i : scratch.inside) histogram[bucket_of(row.x[i])] += weights[i];
  above += mass_before(histogram, wanted - above, &bucket);
  Cut cut;
  // A wrong guess, or the last buckets: those may hold tokens that were passed over as negligible.
  cut.decided = bucket < kBuckets - 1 && above < wanted && above + histogram[bucket] >= wanted;
  if (!cut.decided) return cut;
  std::vector<float>& values = scratch.numbers;
  values.clear();
  for (int32_t i : scratch.inside)
    if (bucket_of(row.x[i]) == bucket && weights[i] > 0) values.push_back(row.x[i]);
  std::sort(values.begin(), values.end(), std::greater<float>());
  return cut_sorted(values, t, above, wanted, error);
}

}  // namespace

Cut cut_nucleus(const RowSettings& s, const Tempering& t, float floor, Scratch& scratch, double* raw, double* tempered) {
  const RowValues& row = scratch.values;
  const double reach = negligible(row);
  double total = weigh_float32(row, t, floor, reach, scratch, raw);
  *tempered = floor == kLowest ? total : kept_mass(row, t, kLowest);
  Cut cut;
  float lowest;
  if (top_groups_hold(row, t, s.top_p * total, scratch, &lowest)) {
    gather_sorted(row, std::max(lowest, floor), row.max, scratch.numbers);
    cut = cut_sorted(scratch.numbers, t, 0.0, s.top_p * total, kFloat32Error * total);
  } else {
    cut = cut_by_histogram(s, t, reach, scratch.weights.data(), total, kFloat32Error * total, scratch);
  }
  if (cut.decided) return cut;
  total = weigh_float64(row, t, floor, reach, scratch);
  return cut_by_histogram(s, t, reach, scratch.y.data(), total, kFloat64Error * total, scratch);
}

}  // namespace adapt
