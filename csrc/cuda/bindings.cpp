// Numbers in, status out: pybind11 over the CUDA kernels. Streams and workspaces are addresses too.
#include <pybind11/pybind11.h>

#include "adapt/credit_numbers.h"

PYBIND11_MODULE(adapt_cuda, module) {
  const pybind11::call_guard<pybind11::gil_scoped_release> without_gil;
  module.def("token_logprobs_workspace", &adapt_token_logprobs_workspace);
  module.def("token_logprobs_cuda",
             adapt::from_numbers(adapt::token_logprobs_arguments, adapt_token_logprobs_cuda), without_gil);
  module.def("logit_gradient_cuda",
             adapt::from_numbers(adapt::logit_gradient_arguments, adapt_logit_gradient_cuda), without_gil);
  module.def("policy_loss_cuda",
             adapt::from_numbers(adapt::policy_loss_arguments, adapt_policy_loss_cuda), without_gil);
  module.def("rescale_cuda", adapt::from_numbers(adapt::rescale_arguments, adapt_rescale_cuda), without_gil);
}
