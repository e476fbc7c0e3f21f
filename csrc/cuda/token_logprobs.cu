// token_logprobs on the GPU: a row is cut into splits that depend on the vocabulary only, one block each, and the splits
// are merged in order, so a row's bits depend on nothing but the row.
#include "adapt/token_logprobs.h"

#include "softmax_row.cuh"

namespace adapt {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kSplit = 8192;

int64_t splits_of(int64_t vocab_size) { return (vocab_size + kSplit - 1) / kSplit; }

template <typename T>
__global__ void __launch_bounds__(kThreads) scan_splits(TokenLogprobsArguments a, int64_t splits, Partial* partials) {
  for (int64_t job = blockIdx.x; job < a.logits.count * splits; job += gridDim.x) {
    const int64_t row = job / splits, begin = (job % splits) * kSplit;
    if (a.mask && !a.mask[row]) continue;
    const int64_t end = begin + kSplit < a.logits.vocab_size ? begin + kSplit : a.logits.vocab_size;
    const float scale2 = log2_scale(a.temperature[row]);
    const Partial mine = scan_columns<T, kThreads>(row_at<T>(a.logits, row), begin, end, scale2);
    const Partial whole = reduce_block<kThreads>(mine, scale2);
    if (threadIdx.x == 0) partials[job] = whole;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) merge_splits(TokenLogprobsArguments a, int64_t splits,
                                                         const Partial* partials) {
  for (int64_t row = blockIdx.x * int64_t(kThreads) + threadIdx.x; row < a.logits.count;
       row += int64_t(gridDim.x) * kThreads) {
    double* out = a.statistics ? a.statistics + 3 * row : nullptr;
    if (a.mask && !a.mask[row]) {
      a.logprobs[row] = a.entropy[row] = 0;
      for (int k = 0; out && k < 3; ++k) out[k] = 0;
      continue;
    }
    const double temperature = a.temperature[row];
    const float scale2 = log2_scale(temperature);
    Partial whole = partials[row * splits];
    for (int64_t k = 1; k < splits; ++k) whole = merged(whole, partials[row * splits + k], scale2);
    const RowStatistics s{whole.max, whole.mass, whole.moment * kLn2};
    // What is written early need not be kept across the divisions' slow path: on sm_80 it would spill.
    if (out) {
      out[0] = s.max;
      out[1] = s.mass;
      out[2] = s.moment;
    }
    a.entropy[row] = float(entropy_of(s));
    a.logprobs[row] = token_logprob(row_at<T>(a.logits, row), a.logits.vocab_size, a.ids[row], s, temperature);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) gradient_rows(LogitGradientArguments a) {
  ADAPT_SHARED GradientRow decision;
  for (int64_t row = blockIdx.x; row < a.logits.count; row += gridDim.x) {
    const T* x = row_at<T>(a.logits, row);
    if (threadIdx.x == 0) {
      decision = GradientRow{};
      if (!a.mask || a.mask[row]) {
        const RowStatistics s{a.statistics[3 * row], a.statistics[3 * row + 1], a.statistics[3 * row + 2]};
        decision = gradient_row(x, a.logits.vocab_size, a.ids[row], s, a.temperature[row], a.logprob_slope[row],
                                a.entropy_slope ? a.entropy_slope[row] : 0.0);
      }
    }
    __syncthreads();
    write_gradient<T, kThreads>(x, row_at<T>(a.gradient, row), a.logits.vocab_size, a.ids[row], decision, a.zeroed);
    __syncthreads();
  }
}

template <typename T>
int score(const TokenLogprobsArguments& a, void* workspace, cudaStream_t stream) {
  if (a.logits.count == 0) return 0;
  const int64_t splits = splits_of(a.logits.vocab_size);
  Partial* partials = static_cast<Partial*>(workspace);
  ADAPT_LAUNCH(scan_splits<T>, grid_of(a.logits.count * splits), kThreads, stream, a, splits, partials);
  const int64_t blocks = (a.logits.count + kThreads - 1) / kThreads;
  ADAPT_LAUNCH(merge_splits<T>, grid_of(blocks), kThreads, stream, a, splits, partials);
  return last_status();
}

template <typename T>
int gradient(const LogitGradientArguments& a, cudaStream_t stream) {
  if (a.logits.count == 0) return 0;
  ADAPT_LAUNCH(gradient_rows<T>, grid_of(a.logits.count), kThreads, stream, a);
  return last_status();
}

}  // namespace
}  // namespace adapt

extern "C" int64_t adapt_token_logprobs_workspace(int64_t rows, int64_t vocab_size) {
  return rows * adapt::splits_of(vocab_size) * int64_t(sizeof(adapt::Partial));
}

extern "C" int adapt_token_logprobs_cuda(const TokenLogprobsArguments* arguments, void* workspace, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  switch (arguments->logits.type) {
    case kFloat32: return adapt::score<float>(*arguments, workspace, on);
    case kBfloat16: return adapt::score<__nv_bfloat16>(*arguments, workspace, on);
    case kFloat16: return adapt::score<__half>(*arguments, workspace, on);
  }
  return 1;
}

extern "C" int adapt_logit_gradient_cuda(const LogitGradientArguments* arguments, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  switch (arguments->logits.type) {
    case kFloat32: return adapt::gradient<float>(*arguments, on);
    case kBfloat16: return adapt::gradient<__nv_bfloat16>(*arguments, on);
    case kFloat16: return adapt::gradient<__half>(*arguments, on);
  }
  return 1;
}
