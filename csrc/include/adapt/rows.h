// What ops over rows of logits share in their C ABI.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define ADAPT_BOTH __host__ __device__
#else
#define ADAPT_BOTH
#endif

// A row argument: per_row[i] where per_row is set, else `value` for every row.
template <typename T>
struct RowArgument {
  T value;
  const T* per_row;
  ADAPT_BOTH T operator[](int64_t row) const { return per_row ? per_row[row] : value; }
};

enum LogitsType : int32_t { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };

// Row i starts at data + (i / inner) * outer_stride + (i % inner) * inner_stride, in elements.
template <typename Pointer>
struct RowsOf {
  Pointer data;
  LogitsType type;
  int64_t count, inner, vocab_size, outer_stride, inner_stride;
  ADAPT_BOTH int64_t offset(int64_t row) const {
    if (count <= inner) return row * inner_stride;  // without a division
    return (row / inner) * outer_stride + (row % inner) * inner_stride;
  }
};
using LogitRows = RowsOf<const void*>;
using GradientRows = RowsOf<void*>;
