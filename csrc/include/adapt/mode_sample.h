// The C ABI of mode_sample. The contract is in adapt_kernels/ops/mode_sample/__init__.py.
#pragma once
#include <cstdint>

#include "adapt/rows.h"

enum SampleFlag : int32_t { kFlagNan = 1, kFlagEmpty = 2, kFlagInf = 4 };

// Class 0 is that of every id from `count` on.
struct ClassEdits {
  const uint8_t* token_classes;  // [count], each < classes; null = no edits
  int64_t count, classes;
  const float* scale;  // [rows, classes]
  const float* bias;   // [rows, classes], -inf = never drawn
};

struct ModeSampleArguments {
  // Row i starts at logits + (i / inner) * outer_stride + (i % inner) * inner_stride, in elements.
  const void* logits;
  LogitsType logits_type;
  int64_t rows, inner, vocab_size, outer_stride, inner_stride;

  const int64_t* mode_ids;  // [num_modes], -1 = any other token
  int64_t num_modes;
  bool only_modes;
  const double* bias;  // [rows, num_modes] or null
  RowArgument<double> temperature;
  RowArgument<int64_t> top_k;
  RowArgument<double> top_p;
  RowArgument<double> min_p;
  RowArgument<bool> at_mode;
  RowArgument<int64_t> seeds;  // a single value s stands for row_seed(s, row)
  RowArgument<int64_t> step;
  RowArgument<double> fast_prob;         // NaN = none
  RowArgument<int64_t> forced_tokens;    // < 0 = draw

  ClassEdits edits;

  int64_t* tokens;             // [rows]
  int8_t* modes;               // [rows]
  float* logprobs;             // [rows]
  float* raw_logprobs;         // [rows]
  float* tempered_logprobs;    // [rows]
  float* mode_probs;           // [rows, num_modes]
  int32_t* kept;               // [rows]
  int32_t* flags;              // [rows]

  int32_t threads;
};

// Returns 0, or 1 for a logits_type it does not know.
extern "C" int adapt_mode_sample_cpu(const ModeSampleArguments* arguments);
