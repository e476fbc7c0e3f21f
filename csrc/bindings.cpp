// Numbers in, status out: pybind11 here and nowhere else. Checks and defaults are in adapt_kernels/ops/*/native.py.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "adapt/credit_numbers.h"
#include "adapt/mode_sample.h"
#include "adapt/steer.h"

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

namespace steer = adapt::steer;

// Addresses and sizes in the order of the structure; kept by the caller for as long as the tables live.
steer::Tables steer_tables(
    Address classes, Address transitions, Address accept, Address back, Address spans, Address rules, Address limits,
    Address chances, Address waits, Address conditions, Address condition_ranges, Address mode_clauses, Address blanks,
    Address sequences, Address lengths, Address ids, Address gate_modes, Address biases, Address bias_amounts,
    Address bias_members, int64_t vocab_size, int64_t num_patterns, int64_t num_states, int64_t num_classes,
    int64_t num_spans, int64_t num_rules, int64_t num_conditions, int64_t num_mode_clauses, int64_t num_blanks,
    int64_t num_sequences, int64_t num_ids, int64_t num_gate_modes, int64_t num_biases, int64_t num_bias_classes,
    bool limits_per_row, bool lengths_per_row, bool ids_per_row, int64_t width, int64_t registers) {
  return {at<const int16_t>(classes), at<const uint8_t>(transitions), at<const bool>(accept), at<const uint8_t>(back),
          at<const int32_t>(spans), at<const int32_t>(rules), at<const int32_t>(limits), at<const double>(chances),
          at<const bool>(waits), at<const int32_t>(conditions), at<const float>(condition_ranges),
          at<const int32_t>(mode_clauses), at<const int32_t>(blanks), at<const int32_t>(sequences),
          at<const int32_t>(lengths), at<const int32_t>(ids), at<const int32_t>(gate_modes), at<const int32_t>(biases),
          at<const float>(bias_amounts), at<const bool>(bias_members),
          vocab_size, num_patterns, num_states, num_classes, num_spans, num_rules, num_conditions, num_mode_clauses,
          num_blanks, num_sequences, num_ids, num_gate_modes, num_biases, num_bias_classes,
          limits_per_row, lengths_per_row, ids_per_row, width, registers};
}

int steer_advance_cpu(const steer::Tables& tables, int64_t rows, Address patterns, Address flags, Address numbers,
                      Address registers, Address tokens, bool generated, Address new_patterns, Address new_flags,
                      Address new_numbers) {
  const steer::AdvanceArguments arguments{
      {at<const uint8_t>(patterns), at<const uint8_t>(flags), at<const int32_t>(numbers), at<const float>(registers)},
      rows, at<const int64_t>(tokens), generated,
      at<uint8_t>(new_patterns), at<uint8_t>(new_flags), at<int32_t>(new_numbers)};
  return adapt_steer_advance_cpu(&tables, &arguments);
}

// A function of the tables, of a state and its rows, then of one address per further field of `Arguments`.
template <typename Arguments, typename... Fields>
auto steer_rows(int (*run)(const steer::Tables*, const Arguments*)) {
  return [run](const steer::Tables& tables, int64_t count, Address patterns, Address flags, Address numbers,
               Address registers, Address seeds, Address max_new_tokens, Address uses, Address alive, Address uniforms,
               decltype(Address(sizeof(Fields)))... fields) {
    const Arguments arguments{
        {at<const uint8_t>(patterns), at<const uint8_t>(flags), at<const int32_t>(numbers), at<const float>(registers)},
        {count, at<const int64_t>(seeds), at<const int32_t>(max_new_tokens), at<const bool>(uses),
         at<const bool>(alive), at<const double>(uniforms)},
        at<Fields>(fields)...};
    return run(&tables, &arguments);
  };
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
  pybind11::class_<steer::Tables>(module, "SteerTables").def(pybind11::init(&steer_tables));
  module.def("steer_advance_cpu", &steer_advance_cpu, without_gil);
  module.def("steer_probe_cpu",
             steer_rows<steer::ProbeArguments, const int64_t, int32_t, bool>(adapt_steer_probe_cpu), without_gil);
  module.def("steer_decide_cpu",
             steer_rows<steer::DecideArguments, uint8_t, int32_t, int64_t, uint8_t, int32_t, float, float, int32_t,
                        bool>(adapt_steer_decide_cpu), without_gil);
  module.def("steer_settle_cpu",
             steer_rows<steer::SettleArguments, const int64_t, const uint8_t, const int32_t, const int64_t, int32_t,
                        int64_t, uint8_t, bool>(adapt_steer_settle_cpu), without_gil);
}
