// How the fast path sees a row: tempered logits, masses, cuts.
#pragma once
#include "row.h"
#include "simd.h"

namespace adapt {

constexpr double kLog2e = 1.4426950408889634074;
constexpr float kLowest = std::numeric_limits<float>::lowest();

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
  int64_t kept = -1;        // their number; < 0 = not known yet
  bool decided = true;
};

// Groups whose largest weight is below e^-negligible add less than 1e-11 of the mass, all together.
inline double negligible(const RowValues& row) { return std::log(double(row.vocab_size)) + 25.0; }

inline bool any(i32x8 v) {
  const i64x4 halves = load<i64x4>(&v);
  return (halves[0] | halves[1] | halves[2] | halves[3]) != 0;
}

// masses.cpp
void group_masses(const float* x, float max, float scale2, bool same, float* raw, float* tempered);
void row_masses(const RowValues& row, double scale, bool tempered_too, std::vector<double>& bound, double* raw,
                double* tempered);
double kept_mass(const RowValues& row, const Tempering& t, float tau);
double group_kept_mass(const float* x, const Tempering& t, float tau, double* weights);
int64_t count_kept(const RowValues& row, float tau);

// cuts.cpp
float kth_largest(const RowValues& row, int64_t k, std::vector<float>& numbers);
void gather(const RowValues& row, const Tempering& t, float tau, std::vector<Candidate>& out);
Cut cut_list(const RowSettings& s, Scratch& scratch);
float min_p_threshold(const RowSettings& s, const Tempering& t);

// nucleus.cpp
Cut cut_nucleus(const RowSettings& s, const Tempering& t, float floor, Scratch& scratch, double* raw, double* tempered);

}  // namespace adapt
