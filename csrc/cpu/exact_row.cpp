// One row in float64, step by step as the reference does it: for biased rows, rows with +inf, "any other token" modes,
// extreme temperatures, and the rare row whose cut the fast path cannot decide.
#include "row.h"

namespace adapt {
namespace {

bool is_member(const RowSettings& s, int64_t mode, int64_t token) {
  if (s.mode_ids[mode] >= 0) return s.mode_ids[mode] == token;
  return std::find(s.mode_ids, s.mode_ids + s.num_modes, token) == s.mode_ids + s.num_modes;
}

// Rows with +inf become their limit: 0 on the +inf tokens, -inf elsewhere.
void settle_infinities(double* y, int64_t n) {
  if (std::find(y, y + n, kInf) == y + n) return;
  for (int64_t i = 0; i < n; ++i) y[i] = y[i] == kInf ? 0.0 : -kInf;
}

double log_sum_exp(const double* y, int64_t n) {
  const double peak = *std::max_element(y, y + n);
  if (peak == -kInf) return -kInf;
  double mass = 0;
  for (int64_t i = 0; i < n; ++i) mass += std::exp(y[i] - peak);
  return peak + std::log(mass);
}

double member_log_mass(const RowSettings& s, const double* y, int64_t n, int64_t mode, bool inside) {
  double peak = -kInf, mass = 0;
  for (int pass = 0; pass < 2; ++pass)
    for (int64_t i = 0; i < n; ++i)
      if (y[i] != -kInf && is_member(s, mode, i) == inside) {
        if (pass == 0) peak = std::max(peak, y[i]);
        else mass += std::exp(y[i] - peak);
      }
  return peak == -kInf ? -kInf : peak + std::log(mass);
}

void write_mode_probs(const RowSettings& s, const std::vector<double>& raw, int64_t n, float* mode_probs) {
  std::vector<double> listed(raw.begin(), raw.begin() + n);
  if (!s.any_other)
    for (int64_t i = 0; i < n; ++i)
      if (std::find(s.mode_ids, s.mode_ids + s.num_modes, i) == s.mode_ids + s.num_modes) listed[i] = -kInf;
  settle_infinities(listed.data(), n);
  std::vector<double> mass(s.num_modes);
  for (int64_t m = 0; m < s.num_modes; ++m) mass[m] = member_log_mass(s, listed.data(), n, m, true);
  const double total = log_sum_exp(mass.data(), s.num_modes);
  for (int64_t m = 0; m < s.num_modes; ++m) mode_probs[m] = total == -kInf ? 0.0f : float(std::exp(mass[m] - total));
}

// P(mode 0) = fast_prob; the other modes keep their proportions.
void set_exact_probability(const RowSettings& s, double* y, int64_t n) {
  const double fast = member_log_mass(s, y, n, 0, true), rest = member_log_mass(s, y, n, 0, false);
  if (rest == -kInf) return;
  const double log_fast = std::log(s.fast_prob), log_rest = std::log1p(-s.fast_prob);
  for (int64_t i = 0; i < n; ++i) {
    if (!is_member(s, 0, i)) y[i] = y[i] - rest + log_rest;
    else if (fast != -kInf) y[i] = y[i] - fast + log_fast;
    else if (s.mode_ids[0] >= 0) y[i] = log_fast;
  }
  const double peak = *std::max_element(y, y + n);
  for (int64_t i = 0; i < n; ++i) y[i] -= peak;
}

// Bias, restriction, temperature: y with row maximum 0. False when every token is -inf.
bool gate(const RowSettings& s, double* y, int64_t n) {
  if (s.at_mode) {
    for (int64_t i = 0; i < n; ++i) {
      bool listed = s.any_other;
      for (int64_t m = 0; m < s.num_modes; ++m)
        if (is_member(s, m, i)) {
          listed = true;
          if (s.bias) y[i] = biased(y[i], s.bias[m]);
        }
      if (s.only_modes && !listed) y[i] = -kInf;
    }
  }
  settle_infinities(y, n);
  const double peak = *std::max_element(y, y + n);
  if (peak == -kInf) return false;
  const double scale = s.scale();
  for (int64_t i = 0; i < n; ++i)
    if (y[i] != -kInf) y[i] = (y[i] - peak) / scale;
  if (s.exact_probability()) set_exact_probability(s, y, n);
  return true;
}

// The smallest y that is kept.
double threshold(const RowSettings& s, const double* y, int64_t n, std::vector<double>& sorted) {
  double tau = -std::numeric_limits<double>::max();
  if (s.limits_k(n)) {
    sorted.assign(y, y + n);
    std::nth_element(sorted.begin(), sorted.begin() + (s.top_k - 1), sorted.end(), std::greater<double>());
    tau = std::max(tau, sorted[s.top_k - 1]);
  }
  if (s.limits_p()) {
    sorted.clear();
    for (int64_t i = 0; i < n; ++i)
      if (y[i] >= tau) sorted.push_back(y[i]);
    std::sort(sorted.begin(), sorted.end(), std::greater<double>());
    double total = 0, mass = 0;
    for (double value : sorted) total += std::exp(value);
    const size_t kept = nucleus_size(
        sorted.data(), sorted.size(), [](double value) { return std::exp(value); }, s.top_p * total, &mass);
    tau = std::max(tau, sorted[kept - 1]);
  }
  return tau;
}

}  // namespace

RowResult sample_exact(const RowSettings& s, Scratch& scratch, float* mode_probs) {
  const RowValues& row = scratch.values;
  const int64_t n = row.vocab_size;
  std::vector<double> raw(row.x.begin(), row.x.begin() + n);
  if (s.num_modes) write_mode_probs(s, raw, n, mode_probs);
  std::vector<double>& y = scratch.y;
  y.assign(raw.begin(), raw.end());
  settle_infinities(raw.data(), n);
  const bool some = gate(s, y.data(), n);

  RowResult result{0, 0, 0, 0, 0, row.flags};
  std::vector<Candidate>& kept = scratch.candidates;
  kept.clear();
  if (!some) {
    result.flags |= kFlagEmpty;
    result.token = s.restricted() && !s.any_other ? *std::min_element(s.mode_ids, s.mode_ids + s.num_modes) : 0;
  } else if (s.greedy()) {
    result.token = std::max_element(y.begin(), y.end()) - y.begin();
    kept.push_back({result.token, y[result.token]});
  } else {
    const double tau = threshold(s, y.data(), n, scratch.mass);
    for (int64_t i = 0; i < n; ++i)
      if (y[i] >= tau && !(s.limits_min_p() && std::exp(y[i]) < s.min_p)) kept.push_back({i, y[i]});
    result.token = draw_candidates(kept, s.seed, s.step);
  }
  if (s.forced >= 0) result.token = s.forced;

  double kept_mass = 0;
  bool inside = false;
  for (const Candidate& c : kept) kept_mass += std::exp(c.y), inside |= c.id == result.token;
  const double value = y[result.token], raw_value = raw[result.token];
  result.kept = int32_t(kept.size());
  result.logprob = inside ? value - std::log(kept_mass) : (!some && s.forced < 0 ? 0.0 : -kInf);
  result.raw_logprob = raw_value == -kInf ? -kInf : raw_value - log_sum_exp(raw.data(), n);
  result.tempered_logprob = value == -kInf ? -kInf : value - log_sum_exp(y.data(), n);
  return result;
}

}  // namespace adapt
