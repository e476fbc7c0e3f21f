// The C ABI of kv_scores: what r_kv asks of all pairs of a head's keys. The contract is in
// adapt_kernels/ops/kv_scores/__init__.py.
#pragma once
#include <cstdint>

struct SimilarKeysArguments {
  const float* unit;  // [heads, blocks, width, 32]: keys of length 1, or 0 where there is none; a column each
  float* mean;        // [heads, length]
  int64_t heads, length, width;
  int64_t padded;  // columns, length rounded up to a multiple of 32; those past `length` are 0
  double similar;  // cosine from which two keys are
  int32_t threads;
};

// mean[j]: over all i, of cos(i, j); without i = j, and without the newest j that each i is similar to. Returns 0.
extern "C" int adapt_similar_keys_cpu(const SimilarKeysArguments* arguments);
