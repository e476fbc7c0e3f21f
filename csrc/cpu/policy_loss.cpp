// policy_loss on the CPU: rows over threads; a row is read once from memory and, if it has a gradient, again from cache.
#include "adapt/policy_loss.h"

#include <numeric>

#include "softmax_row.h"

namespace adapt {
namespace {

PolicyRow settings_of(const PolicyLossArguments& a, int64_t i) {
  return {a.old_logprobs[i],        a.advantages[i], a.weights[i], LossKind(a.kinds[i]), a.ref_logprobs != nullptr,
          a.ref_logprobs ? a.ref_logprobs[i] : 0.0};
}

template <typename Type>
void loss_row(const PolicyLossArguments& a, int64_t i, bool stream) {
  const int64_t vocab_size = a.logits.vocab_size;
  char* out = a.gradient.data ? row_at<Type>(a.gradient, i) : nullptr;
  if (a.mask && !a.mask[i]) {
    a.losses[i] = 0;
    a.logprobs[i] = a.entropy[i] = 0;
    a.ratio[i] = 1;
    a.clipped[i] = false;
    if (out && !a.zeroed) write_zeros<Type>(out, vocab_size, stream);
    return;
  }
  const char* x = row_at<Type>(a.logits, i);
  const double temperature = a.temperature[i];
  const RowStatistics s = row_statistics<Type>(x, vocab_size, temperature, row_ahead<Type>(a.logits, a.mask, i, a.threads));
  a.logprobs[i] = token_logprob<Type>(x, vocab_size, a.ids[i], s, temperature);
  a.entropy[i] = float(s.entropy());
  // The ratio sees the log-prob that is returned, so that given back as old_logprobs it makes exactly 1.
  const PolicyTerm term = policy_term(double(a.logprobs[i]), s.entropy(), settings_of(a, i), a.settings);
  a.losses[i] = term.loss;
  a.ratio[i] = float(term.ratio);
  a.clipped[i] = term.clipped;
  if (!out) return;
  if (term.logprob_slope != 0 || term.entropy_slope != 0) {
    write_gradient<Type>(x, out, vocab_size, a.ids[i], s, temperature, term.logprob_slope * a.gradient_scale,
                         term.entropy_slope * a.gradient_scale, stream);
  } else if (!a.zeroed) {
    write_zeros<Type>(out, vocab_size, stream);
  }
}

template <typename Type>
int loss_rows(const PolicyLossArguments& a) {
  const bool stream = a.gradient.data && past_caches(a.gradient, Type::kBytes);
#pragma omp parallel for schedule(dynamic) num_threads(a.threads) if (a.threads > 1 && a.logits.count > 1)
  for (int64_t i = 0; i < a.logits.count; ++i) loss_row<Type>(a, i, stream);
  *a.loss = std::accumulate(a.losses, a.losses + a.logits.count, 0.0);
  return 0;
}

}  // namespace
}  // namespace adapt

extern "C" int adapt_policy_loss_cpu(const PolicyLossArguments* arguments) {
  switch (arguments->logits.type) {
    case kFloat32: return adapt::loss_rows<adapt::Float32Logits>(*arguments);
    case kBfloat16: return adapt::loss_rows<adapt::Bfloat16Logits>(*arguments);
    case kFloat16: return adapt::loss_rows<adapt::Float16Logits>(*arguments);
  }
  return 1;
}
