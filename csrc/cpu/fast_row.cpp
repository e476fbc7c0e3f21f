// One row by vector code: exponentials in float32 where a log-prob is all that depends on them, in float64 where a cut
// does. Work is skipped only where a bound proves it cannot matter; a cut too close to call goes to the exact path.
#include "tempering.h"

namespace adapt {
namespace {

// Up to this many top-k survivors are handled as a list.
constexpr int64_t kListLimit = 4096;

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
  if (!nucleus) row_masses(row, t.scale, true, scratch.mass, &raw_mass, &mass);
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
      cut = cut_nucleus(s, t, floor, scratch, &raw_mass, &mass);
      if (!cut.decided) return sample_exact(s, scratch, mode_probs);
    }
    if (s.limits_min_p()) {
      const float tau = min_p_threshold(s, t);
      if (tau > cut.tau) cut = {tau};
    }
    if (cut.kept_mass < 0) cut.kept_mass = cut.tau == kLowest ? mass : kept_mass(row, t, cut.tau);
    r.token = draw_wide(s, row, t, cut.tau, scratch.mass);
    r.kept = int32_t(cut.kept < 0 ? count_kept(row, cut.tau) : cut.kept);
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
