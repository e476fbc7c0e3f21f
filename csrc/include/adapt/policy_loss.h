// The C ABI of policy_loss. The contract is in adapt_kernels/ops/policy_loss/__init__.py.
#pragma once
#include <cstdint>

#include "adapt/policy_term.h"
#include "adapt/rows.h"

struct PolicyLossArguments {
  LogitRows logits;
  const int64_t* ids;  // [rows]
  const bool* mask;    // [rows] or null; a row that is not set is not read
  RowArgument<double> temperature;
  const double* old_logprobs;  // [rows]
  const double* advantages;    // [rows]
  RowArgument<int8_t> kinds;
  RowArgument<double> weights;
  const double* ref_logprobs;  // [rows] or null
  PolicySettings settings;
  double gradient_scale;
  double* loss;           // [1], the sum of `losses` in row order
  double* losses;         // [rows], weighted
  float* logprobs;        // [rows]
  float* entropy;         // [rows]
  float* ratio;           // [rows]
  bool* clipped;          // [rows]
  GradientRows gradient;  // data null = none wanted; may be the logits
  bool zeroed;            // rows without gradient hold zeros already
  int32_t threads;
};

// A gradient as it was written, times `loss_gradient` / `written_for`, in place; a quotient of 1 touches nothing.
struct RescaleArguments {
  GradientRows gradient;
  const float* loss_gradient;  // [1], on the device: the host need not wait for it
  double written_for;
};

// Returns 0, or 1 for a type it does not know.
extern "C" int adapt_policy_loss_cpu(const PolicyLossArguments* arguments);

// On a GPU, queued on a cudaStream_t; 2 = the launch failed.
extern "C" int adapt_policy_loss_cuda(const PolicyLossArguments* arguments, void* stream);
extern "C" int adapt_rescale_cuda(const RescaleArguments* arguments, void* stream);
