// token_logprobs on the CPU: rows over threads, one read of each; and the gradient of what depends on a row through it.
#include "adapt/token_logprobs.h"

#include "softmax_row.h"

namespace adapt {
namespace {

template <typename Type>
void score_row(const TokenLogprobsArguments& a, int64_t i) {
  if (a.mask && !a.mask[i]) {
    a.logprobs[i] = a.entropy[i] = 0;
    for (int k = 0; a.statistics && k < 3; ++k) a.statistics[3 * i + k] = 0;
    return;
  }
  const char* x = row_at<Type>(a.logits, i);
  const RowStatistics s = row_statistics<Type>(x, a.logits.vocab_size, a.temperature[i],
                                               row_ahead<Type>(a.logits, a.mask, i, a.threads));
  a.logprobs[i] = token_logprob<Type>(x, a.logits.vocab_size, a.ids[i], s, a.temperature[i]);
  a.entropy[i] = float(s.entropy());
  if (!a.statistics) return;
  a.statistics[3 * i] = s.max;
  a.statistics[3 * i + 1] = s.mass;
  a.statistics[3 * i + 2] = s.moment;
}

template <typename Type>
void gradient_row(const LogitGradientArguments& a, int64_t i, bool stream) {
  const int64_t vocab_size = a.logits.vocab_size;
  char* out = row_at<Type>(a.gradient, i);
  const double entropy_slope = a.entropy_slope ? a.entropy_slope[i] : 0;
  if ((a.mask && !a.mask[i]) || (a.logprob_slope[i] == 0 && entropy_slope == 0)) {
    if (!a.zeroed) write_zeros<Type>(out, vocab_size, stream);
    return;
  }
  const RowStatistics s{a.statistics[3 * i], a.statistics[3 * i + 1], a.statistics[3 * i + 2]};
  write_gradient<Type>(row_at<Type>(a.logits, i), out, vocab_size, a.ids[i], s, a.temperature[i], a.logprob_slope[i],
                       entropy_slope, stream);
}

template <typename Type>
int score_rows(const TokenLogprobsArguments& a) {
#pragma omp parallel for schedule(dynamic) num_threads(a.threads) if (a.threads > 1 && a.logits.count > 1)
  for (int64_t i = 0; i < a.logits.count; ++i) score_row<Type>(a, i);
  return 0;
}

template <typename Type>
int gradient_rows(const LogitGradientArguments& a) {
  const bool stream = past_caches(a.gradient, Type::kBytes);
#pragma omp parallel for schedule(dynamic) num_threads(a.threads) if (a.threads > 1 && a.logits.count > 1)
  for (int64_t i = 0; i < a.logits.count; ++i) gradient_row<Type>(a, i, stream);
  return 0;
}

}  // namespace
}  // namespace adapt

extern "C" int adapt_token_logprobs_cpu(const TokenLogprobsArguments* arguments) {
  switch (arguments->logits.type) {
    case kFloat32: return adapt::score_rows<adapt::Float32Logits>(*arguments);
    case kBfloat16: return adapt::score_rows<adapt::Bfloat16Logits>(*arguments);
    case kFloat16: return adapt::score_rows<adapt::Float16Logits>(*arguments);
  }
  return 1;
}

extern "C" int adapt_logit_gradient_cpu(const LogitGradientArguments* arguments) {
  switch (arguments->logits.type) {
    case kFloat32: return adapt::gradient_rows<adapt::Float32Logits>(*arguments);
    case kBfloat16: return adapt::gradient_rows<adapt::Bfloat16Logits>(*arguments);
    case kFloat16: return adapt::gradient_rows<adapt::Float16Logits>(*arguments);
  }
  return 1;
}
