// Numbers in, status out: pybind11 here and nowhere else. Checks and defaults are in adapt_kernels/ops/*/native.py.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "adapt/credit_numbers.h"
#include "adapt/mode_sample.h"

namespace {

using adapt::Address;
using adapt::at;

int mode_sample_cpu(Address logits, int32_t logits_type, int64_t rows, int64_t inner, int64_t vocab_size,
                    int64_t outer_stride, int64_t inner_stride, Address mode_ids, int64_t num_modes, bool only_modes,
                    Address bias, bool at_mode, Address at_mode_rows, double temperature, Address temperature_rows,
                    int64_t top_k, Address top_k_rows, double top_p, Address top_p_rows, double min_p,
                    Address min_p_rows, int64_t seeds, Address seeds_rows, int64_t step, Address step_rows,
                    double fast_prob, Address fast_prob_rows, int64_t forced_tokens, Address forced_tokens_rows,
                    Address tokens, Address modes, Address logprobs, Address raw_logprobs, Address tempered_logprobs,
                    Address mode_probs, Address kept, Address flags, int32_t threads) {
  const ModeSampleArguments arguments{
      at<const void>(logits), static_cast<LogitsType>(logits_type),
      rows, inner, vocab_size, outer_stride, inner_stride,
      at<const int64_t>(mode_ids), num_modes, only_modes,
      {at_mode, at<const bool>(at_mode_rows)},
      at<const double>(bias),
      {temperature, at<const double>(temperature_rows)},
      {top_k, at<const int64_t>(top_k_rows)},
      {top_p, at<const double>(top_p_rows)},
      {min_p, at<const double>(min_p_rows)},
      {seeds, at<const int64_t>(seeds_rows)},
      {step, at<const int64_t>(step_rows)},
      {fast_prob, at<const double>(fast_prob_rows)},
      {forced_tokens, at<const int64_t>(forced_tokens_rows)},
      at<int64_t>(tokens), at<int8_t>(modes), at<float>(logprobs), at<float>(raw_logprobs),
      at<float>(tempered_logprobs), at<float>(mode_probs), at<int32_t>(kept), at<int32_t>(flags),
      threads};
  return adapt_mode_sample_cpu(&arguments);
}

}  // namespace

PYBIND11_MODULE(adapt_native, module) {
  const pybind11::call_guard<pybind11::gil_scoped_release> without_gil;
  module.def("mode_sample_cpu", &mode_sample_cpu, without_gil);
  module.def("token_logprobs_cpu",
             adapt::from_numbers(adapt::token_logprobs_arguments, adapt_token_logprobs_cpu), without_gil);
  module.def("logit_gradient_cpu",
             adapt::from_numbers(adapt::logit_gradient_arguments, adapt_logit_gradient_cpu), without_gil);
  module.def("policy_loss_cpu", adapt::from_numbers(adapt::policy_loss_arguments, adapt_policy_loss_cpu), without_gil);
}
