// The C ABI of token_logprobs and of the gradient of anything that depends on a row through its log-prob and entropy.
// The contract is in adapt_kernels/ops/token_logprobs/__init__.py.
#pragma once
#include <cstdint>

#include "adapt/rows.h"

struct TokenLogprobsArguments {
  LogitRows logits;
  const int64_t* ids;  // [rows]; outside [0, vocab_size) the log-prob is NaN
  const bool* mask;    // [rows] or null; a row that is not set is not read
  RowArgument<double> temperature;
  float* logprobs;     // [rows]
  float* entropy;      // [rows]
  double* statistics;  // [rows, 3] or null: what RowStatistics holds
  int32_t threads;
};

struct LogitGradientArguments {
  LogitRows logits;
  const int64_t* ids;  // outside [0, vocab_size): the token is in no column of these rows
  const bool* mask;
  RowArgument<double> temperature;
  const double* statistics;     // [rows, 3]
  const double* logprob_slope;  // [rows], d loss / d log-prob
  const double* entropy_slope;  // [rows] or null, d loss / d entropy
  GradientRows gradient;        // may be the logits
  bool zeroed;                  // rows without gradient hold zeros already
  int32_t threads;
};

// Both return 0, or 1 for a type they do not know.
extern "C" int adapt_token_logprobs_cpu(const TokenLogprobsArguments* arguments);
extern "C" int adapt_logit_gradient_cpu(const LogitGradientArguments* arguments);

// On a GPU, queued on a cudaStream_t; 2 = the launch failed. The workspace holds the given number of bytes.
extern "C" int64_t adapt_token_logprobs_workspace(int64_t rows, int64_t vocab_size);
extern "C" int adapt_token_logprobs_cuda(const TokenLogprobsArguments* arguments, void* workspace, void* stream);
extern "C" int adapt_logit_gradient_cuda(const LogitGradientArguments* arguments, void* stream);
