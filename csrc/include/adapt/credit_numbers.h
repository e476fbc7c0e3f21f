// The credit ops' structures from plain numbers, in the order in which adapt_kernels/ops/*/native.py gives them: what
// the bindings of the CPU and of CUDA share. Knows nothing of Python.
#pragma once
#include "adapt/policy_loss.h"
#include "adapt/token_logprobs.h"

namespace adapt {

// The address of a tensor's data, 0 = null.
using Address = uintptr_t;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

template <typename Pointer>
RowsOf<Pointer> rows_at(Address data, int32_t type, int64_t count, int64_t inner, int64_t vocab_size,
                        int64_t outer_stride, int64_t inner_stride) {
  return {reinterpret_cast<Pointer>(data), static_cast<LogitsType>(type), count, inner, vocab_size, outer_stride,
          inner_stride};
}

inline TokenLogprobsArguments token_logprobs_arguments(
    Address logits, int32_t type, int64_t count, int64_t inner, int64_t vocab_size, int64_t outer_stride,
    int64_t inner_stride, Address ids, Address mask, double temperature, Address temperature_rows, Address logprobs,
    Address entropy, Address statistics, int32_t threads) {
  return {rows_at<const void*>(logits, type, count, inner, vocab_size, outer_stride, inner_stride),
          at<const int64_t>(ids), at<const bool>(mask),
          {temperature, at<const double>(temperature_rows)},
          at<float>(logprobs), at<float>(entropy), at<double>(statistics), threads};
}

inline LogitGradientArguments logit_gradient_arguments(
    Address logits, int32_t type, int64_t count, int64_t inner, int64_t vocab_size, int64_t outer_stride,
    int64_t inner_stride, Address ids, Address mask, double temperature, Address temperature_rows, Address statistics,
    Address logprob_slope, Address entropy_slope, Address gradient, int64_t gradient_outer_stride,
    int64_t gradient_inner_stride, bool zeroed, int32_t threads) {
  return {rows_at<const void*>(logits, type, count, inner, vocab_size, outer_stride, inner_stride),
          at<const int64_t>(ids), at<const bool>(mask),
          {temperature, at<const double>(temperature_rows)},
          at<const double>(statistics), at<const double>(logprob_slope), at<const double>(entropy_slope),
          rows_at<void*>(gradient, type, count, inner, vocab_size, gradient_outer_stride, gradient_inner_stride),
          zeroed, threads};
}

inline PolicyLossArguments policy_loss_arguments(
    Address logits, int32_t type, int64_t count, int64_t inner, int64_t vocab_size, int64_t outer_stride,
    int64_t inner_stride, Address ids, Address mask, double temperature, Address temperature_rows,
    Address old_logprobs, Address advantages, Address kinds, Address weights, Address ref_logprobs, double clip_low,
    double clip_high, double dual_clip, double kl_coef, double entropy_coef, double gradient_scale, Address loss,
    Address losses, Address logprobs, Address entropy, Address ratio, Address clipped, Address gradient,
    int64_t gradient_outer_stride, int64_t gradient_inner_stride, bool zeroed, int32_t threads) {
  return {rows_at<const void*>(logits, type, count, inner, vocab_size, outer_stride, inner_stride),
          at<const int64_t>(ids), at<const bool>(mask),
          {temperature, at<const double>(temperature_rows)},
          at<const double>(old_logprobs), at<const double>(advantages),
          {kPpo, at<const int8_t>(kinds)},
          {1.0, at<const double>(weights)},
          at<const double>(ref_logprobs),
          {clip_low, clip_high, dual_clip, kl_coef, entropy_coef},
          gradient_scale,
          at<double>(loss), at<double>(losses), at<float>(logprobs), at<float>(entropy), at<float>(ratio),
          at<bool>(clipped),
          rows_at<void*>(gradient, type, count, inner, vocab_size, gradient_outer_stride, gradient_inner_stride),
          zeroed, threads};
}

inline RescaleArguments rescale_arguments(Address gradient, int32_t type, int64_t count, int64_t inner,
                                          int64_t vocab_size, int64_t outer_stride, int64_t inner_stride,
                                          Address loss_gradient, double written_for, int32_t) {
  return {rows_at<void*>(gradient, type, count, inner, vocab_size, outer_stride, inner_stride),
          at<const float>(loss_gradient), written_for};
}

// A function of `fill`'s numbers, then one address per further pointer that `run` takes (workspace, stream).
template <typename Arguments, typename... Numbers, typename... Pointers>
auto from_numbers(Arguments (*fill)(Numbers...), int (*run)(const Arguments*, Pointers*...)) {
  return [fill, run](Numbers... numbers, decltype(Address(sizeof(Pointers*)))... pointers) {
    const Arguments arguments = fill(numbers...);
    return run(&arguments, at<Pointers>(pointers)...);
  };
}

}  // namespace adapt
