// mode_sample on the CPU: rows over threads, each row by the fast or the exact path.
#include "adapt/mode_sample.h"

#include "class_bias.h"
#include "row.h"
#include "simd.h"

namespace adapt {
namespace {

inline f32x8 without_nan(f32x8 v, i32x8* nan) {
  const i32x8 is_nan = v != v;
  *nan |= is_nan;
  return is_nan ? splat(-__builtin_inff()) : v;
}

// Reads the row once: NaN to -inf, padded to whole groups, with group maxima and the number of finite tokens.
template <typename Type>
void read_row(const char* p, int64_t vocab_size, RowValues& row) {
  row.vocab_size = vocab_size;
  row.num_groups = (vocab_size + kGroupSize - 1) / kGroupSize;
  row.x.resize(row.num_groups * kGroupSize);
  row.group_max.resize(row.num_groups);
  i32x8 nan{}, finite{};
  float* x = row.x.data();
  const int64_t whole = vocab_size / 8 * 8;
  float peak = -__builtin_inff();
  for (int64_t g = 0; g < row.num_groups; ++g) {
    f32x8 group = splat(-__builtin_inff());
    for (int64_t i = g * kGroupSize; i < (g + 1) * kGroupSize; i += 8) {
      f32x8 v = splat(-__builtin_inff());
      if (i < whole) {
        v = without_nan(Type::load8(p + i * Type::kBytes), &nan);
      } else if (i < vocab_size) {
        for (int64_t j = i; j < vocab_size; ++j) v[j - i] = Type::load1(p + j * Type::kBytes);
        v = without_nan(v, &nan);
      }
      store(x + i, v);
      finite -= v > -__builtin_inff();
      group = v > group ? v : group;
    }
    for (int j = 0; j < 8; ++j) row.group_max[g] = j ? std::max(row.group_max[g], group[j]) : group[0];
    peak = std::max(peak, row.group_max[g]);
  }
  row.max = peak;
  row.finite = 0;
  bool any_nan = false;
  for (int j = 0; j < 8; ++j) row.finite += finite[j], any_nan |= nan[j] != 0;
  row.flags = (any_nan ? kFlagNan : 0) | (peak == __builtin_inff() ? kFlagInf : 0);
}

RowSettings settings_of(const ModeSampleArguments& a, int64_t row) {
  RowSettings s;
  s.temperature = a.temperature[row];
  s.top_k = a.top_k[row];
  s.top_p = a.top_p[row];
  s.min_p = a.min_p[row];
  s.seed = a.seeds.per_row ? uint64_t(a.seeds.per_row[row]) : row_seed(uint64_t(a.seeds.value), uint64_t(row));
  s.step = uint32_t(a.step[row]);
  s.at_mode = a.num_modes > 0 && a.at_mode[row];
  s.only_modes = a.only_modes;
  s.bias = a.bias ? a.bias + row * a.num_modes : nullptr;
  s.fast_prob = a.fast_prob[row];
  s.forced = a.forced_tokens[row];
  s.mode_ids = a.mode_ids;
  s.num_modes = a.num_modes;
  s.any_other = std::find(a.mode_ids, a.mode_ids + a.num_modes, -1) != a.mode_ids + a.num_modes;
  return s;
}

int8_t selected_mode(const RowSettings& s, int64_t token) {
  if (!s.at_mode) return -1;
  int8_t other = -1;
  for (int64_t m = 0; m < s.num_modes; ++m) {
    if (s.mode_ids[m] == token) return int8_t(m);
    if (s.mode_ids[m] < 0) other = int8_t(m);
  }
  return other;
}

template <typename Type>
void sample_row(const ModeSampleArguments& a, const std::vector<int32_t>& classed, int64_t i, Scratch& scratch) {
  const int64_t offset = (i / a.inner) * a.outer_stride + (i % a.inner) * a.inner_stride;
  read_row<Type>(static_cast<const char*>(a.logits) + offset * Type::kBytes, a.vocab_size, scratch.values);
  if (a.edits.token_classes) edit_by_class(a.edits, classed, i, scratch.values);
  const RowSettings s = settings_of(a, i);
  float* mode_probs = a.mode_probs + i * a.num_modes;
  const bool fast = fast_can_serve(s, scratch.values);
  const RowResult r = fast ? sample_fast(s, scratch, mode_probs) : sample_exact(s, scratch, mode_probs);
  a.tokens[i] = r.token;
  a.modes[i] = selected_mode(s, r.token);
  a.logprobs[i] = float(r.logprob);
  a.raw_logprobs[i] = float(r.raw_logprob);
  a.tempered_logprobs[i] = float(r.tempered_logprob);
  a.kept[i] = r.kept;
  a.flags[i] = r.flags;
}

template <typename Type>
void sample_rows(const ModeSampleArguments& a) {
  std::vector<int32_t> classed;
  if (a.edits.token_classes) classed = classed_ids(a.edits.token_classes, a.edits.count);
#pragma omp parallel num_threads(a.threads) if (a.threads > 1 && a.rows > 1)
  {
    static thread_local Scratch scratch;
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < a.rows; ++i) sample_row<Type>(a, classed, i, scratch);
  }
}

}  // namespace
}  // namespace adapt

extern "C" int adapt_mode_sample_cpu(const ModeSampleArguments* arguments) {
  switch (arguments->logits_type) {
    case kFloat32: adapt::sample_rows<adapt::Float32>(*arguments); return 0;
    case kBfloat16: adapt::sample_rows<adapt::Bfloat16>(*arguments); return 0;
    case kFloat16: adapt::sample_rows<adapt::Float16>(*arguments); return 0;
  }
  return 1;
}
