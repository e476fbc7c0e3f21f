// Numbers in, status out: pybind11 here and nowhere else. Checks and defaults are in adapt_kernels/ops/*/native.py.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <tuple>
#include <utility>

#include "adapt/credit_numbers.h"
#include "adapt/kv_scores.h"
#include "adapt/mode_sample.h"
#include "adapt/steer.h"

namespace {

using adapt::Address;
using adapt::at;

int mode_sample_cpu(Address logits, int32_t logits_type, int64_t rows, int64_t inner, int64_t vocab_size,
                    int64_t outer_stride, int64_t inner_stride, Address mode_ids, int64_t num_modes, bool only_modes,
                    Address bias, double temperature, Address temperature_rows, int64_t top_k, Address top_k_rows,
                    double top_p, Address top_p_rows, double min_p, Address min_p_rows, bool at_mode,
                    Address at_mode_rows, int64_t seeds, Address seeds_rows, int64_t step, Address step_rows,
                    double fast_prob, Address fast_prob_rows, int64_t forced_tokens, Address forced_tokens_rows,
                    Address token_classes, int64_t classed, int64_t classes, Address class_scale, Address class_bias,
                    Address tokens, Address modes, Address logprobs, Address raw_logprobs, Address tempered_logprobs,
                    Address mode_probs, Address kept, Address flags, int32_t threads) {
  const ModeSampleArguments arguments{
      at<const void>(logits), static_cast<LogitsType>(logits_type),
      rows, inner, vocab_size, outer_stride, inner_stride,
      at<const int64_t>(mode_ids), num_modes, only_modes,
      at<const double>(bias),
      {temperature, at<const double>(temperature_rows)},
      {top_k, at<const int64_t>(top_k_rows)},
      {top_p, at<const double>(top_p_rows)},
      {min_p, at<const double>(min_p_rows)},
      {at_mode, at<const bool>(at_mode_rows)},
      {seeds, at<const int64_t>(seeds_rows)},
      {step, at<const int64_t>(step_rows)},
      {fast_prob, at<const double>(fast_prob_rows)},
      {forced_tokens, at<const int64_t>(forced_tokens_rows)},
      {at<const uint8_t>(token_classes), classed, classes, at<const float>(class_scale), at<const float>(class_bias)},
      at<int64_t>(tokens), at<int8_t>(modes), at<float>(logprobs), at<float>(raw_logprobs),
      at<float>(tempered_logprobs), at<float>(mode_probs), at<int32_t>(kept), at<int32_t>(flags),
      threads};
  return adapt_mode_sample_cpu(&arguments);
}

int similar_keys_cpu(Address unit, Address mean, int64_t heads, int64_t length, int64_t width, int64_t padded,
                     double similar, int32_t threads) {
  const SimilarKeysArguments arguments{at<const float>(unit), at<float>(mean), heads, length, width, padded, similar,
                                       threads};
  return adapt_similar_keys_cpu(&arguments);
}

// A function of numbers, called with a tuple of them: a signature of forty costs seconds to compile.
template <typename Function, typename... Fields, size_t... places>
auto from_tuple_of(Function run, std::tuple<Fields...>*, std::index_sequence<places...>) {
  return [run](const pybind11::args& given) {
    if (given.size() != sizeof...(Fields)) throw pybind11::type_error("wrong number of arguments");
    const std::tuple<Fields...> numbers{given[places].template cast<Fields>()...};
    const pybind11::gil_scoped_release without_gil;
    return std::apply(run, numbers);
  };
}

template <typename... Fields>
auto from_tuple(int (*run)(Fields...)) {
  return from_tuple_of(run, static_cast<std::tuple<Fields...>*>(nullptr), std::index_sequence_for<Fields...>());
}

template <typename Closure, typename... Fields>
auto from_tuple(Closure run, int (Closure::*)(Fields...) const) {
  return from_tuple_of(run, static_cast<std::tuple<Fields...>*>(nullptr), std::index_sequence_for<Fields...>());
}

template <typename Closure>
auto from_tuple(Closure run) {
  return from_tuple(run, &Closure::operator());
}

namespace steer = adapt::steer;

// The arguments of a call one after the other. A signature of forty numbers costs seconds to compile; a tuple does not.
class Numbers {
 public:
  explicit Numbers(const pybind11::args& given) : given_(given) {}

  int64_t next() {
    if (taken_ == given_.size()) throw pybind11::type_error("steer: too few arguments");
    return given_[taken_++].cast<int64_t>();
  }

  template <typename Field>
  Field* address() {
    return at<Field>(static_cast<Address>(next()));
  }

  void end() const {
    if (taken_ != given_.size()) throw pybind11::type_error("steer: too many arguments");
  }

 private:
  const pybind11::args& given_;
  size_t taken_ = 0;
};

// Addresses and sizes in the order of the structure; kept by the caller for as long as the tables live.
steer::Tables steer_tables(const pybind11::args& given) {
  Numbers n(given);
  const steer::Tables tables{
      n.address<const int16_t>(), n.address<const uint8_t>(), n.address<const bool>(), n.address<const uint8_t>(),
      n.address<const int32_t>(), n.address<const int32_t>(), n.address<const int32_t>(), n.address<const double>(),
      n.address<const bool>(), n.address<const int32_t>(), n.address<const float>(), n.address<const int32_t>(),
      n.address<const int32_t>(), n.address<const int32_t>(), n.address<const int32_t>(), n.address<const int32_t>(),
      n.address<const int32_t>(), n.address<const int32_t>(), n.address<const float>(), n.address<const bool>(),
      n.next(), n.next(), n.next(), n.next(), n.next(), n.next(), n.next(),
      n.next(), n.next(), n.next(), n.next(), n.next(), n.next(), n.next(),
      n.next() != 0, n.next() != 0, n.next() != 0, n.next(), n.next()};
  n.end();
  return tables;
}

steer::State steer_state(Numbers& n) {
  return {n.address<const uint8_t>(), n.address<const uint8_t>(), n.address<const int32_t>(),
          n.address<const float>()};
}

template <typename Arguments>
int steer_run(int (*run)(const steer::Tables*, const Arguments*), const steer::Tables& tables,
              const Arguments& arguments, const Numbers& n) {
  n.end();
  const pybind11::gil_scoped_release without_gil;
  return run(&tables, &arguments);
}

int steer_advance_cpu(const steer::Tables& tables, int64_t rows, const pybind11::args& given) {
  Numbers n(given);
  const steer::AdvanceArguments arguments{steer_state(n), rows, n.address<const int64_t>(), n.next() != 0,
                                          n.address<uint8_t>(), n.address<uint8_t>(), n.address<int32_t>()};
  return steer_run(adapt_steer_advance_cpu, tables, arguments, n);
}

// A function of the tables, of a state and its rows, then of one address per further field of `Arguments`.
template <typename Arguments, typename... Fields>
auto steer_rows(int (*run)(const steer::Tables*, const Arguments*)) {
  return [run](const steer::Tables& tables, int64_t count, const pybind11::args& given) {
    Numbers n(given);
    const Arguments arguments{
        steer_state(n),
        {count, n.address<const int64_t>(), n.address<const int32_t>(), n.address<const bool>(),
         n.address<const bool>(), n.address<const double>()},
        n.address<Fields>()...};
    return steer_run(run, tables, arguments, n);
  };
}

}  // namespace

PYBIND11_MODULE(adapt_native, module) {
  module.def("mode_sample_cpu", from_tuple(&mode_sample_cpu));
  module.def("token_logprobs_cpu",
             from_tuple(adapt::from_numbers(adapt::token_logprobs_arguments, adapt_token_logprobs_cpu)));
  module.def("logit_gradient_cpu",
             from_tuple(adapt::from_numbers(adapt::logit_gradient_arguments, adapt_logit_gradient_cpu)));
  module.def("policy_loss_cpu", from_tuple(adapt::from_numbers(adapt::policy_loss_arguments, adapt_policy_loss_cpu)));
  module.def("similar_keys_cpu", from_tuple(&similar_keys_cpu));
  pybind11::class_<steer::Tables>(module, "SteerTables").def(pybind11::init(&steer_tables));
  module.def("steer_advance_cpu", &steer_advance_cpu);
  module.def("steer_probe_cpu",
             steer_rows<steer::ProbeArguments, const int64_t, int32_t, bool>(adapt_steer_probe_cpu));
  module.def("steer_decide_cpu",
             steer_rows<steer::DecideArguments, uint8_t, int32_t, int64_t, uint8_t, int32_t, float, float, int32_t,
                        bool>(adapt_steer_decide_cpu));
  module.def("steer_settle_cpu",
             steer_rows<steer::SettleArguments, const int64_t, const uint8_t, const int32_t, const int64_t, int32_t,
                        int64_t, uint8_t, bool>(adapt_steer_settle_cpu));
}
