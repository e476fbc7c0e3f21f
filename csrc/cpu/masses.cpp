// Sums of weights over a row.
#include "tempering.h"

namespace adapt {

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

}  // namespace adapt
