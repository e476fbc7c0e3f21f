// policy_loss on the GPU: one block per row reads it for its statistics, decides the row's slope, and reads it a second
// time only if there is a gradient to write.
#include "adapt/policy_loss.h"

#include "softmax_row.cuh"

namespace adapt {
namespace {

constexpr int kThreads = 512;

// By thread 0: the row's results, and what its gradient is made of.
template <typename T>
__device__ void decide(const PolicyLossArguments& a, int64_t row, const T* x, const Partial& whole, GradientRow* out) {
  const double temperature = a.temperature[row];
  const RowStatistics s{whole.max, whole.mass, whole.moment * kLn2};
  const double entropy = entropy_of(s);
  a.entropy[row] = float(entropy);
  const float logprob = token_logprob(x, a.logits.vocab_size, a.ids[row], s, temperature);
  a.logprobs[row] = logprob;
  const PolicyRow settings{a.old_logprobs[row],
                           a.advantages[row],
                           a.weights[row],
                           LossKind(a.kinds[row]),
                           a.ref_logprobs != nullptr,
                           a.ref_logprobs ? a.ref_logprobs[row] : 0.0};
  const PolicyTerm term = policy_term(double(logprob), entropy, settings, a.settings);
  a.losses[row] = term.loss;
  a.ratio[row] = float(term.ratio);
  a.clipped[row] = term.clipped;
  *out = gradient_row(x, a.logits.vocab_size, a.ids[row], s, temperature,
                               term.logprob_slope * a.gradient_scale, term.entropy_slope * a.gradient_scale);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) loss_rows(PolicyLossArguments a) {
  ADAPT_SHARED GradientRow decision;
  for (int64_t row = blockIdx.x; row < a.logits.count; row += gridDim.x) {
    const T* x = row_at<T>(a.logits, row);
    const bool masked = a.mask && !a.mask[row];
    if (masked) {
      if (threadIdx.x == 0) {
        decision = GradientRow{};
        a.losses[row] = 0;
        a.logprobs[row] = a.entropy[row] = 0;
        a.ratio[row] = 1;
        a.clipped[row] = false;
      }
    } else {
      const float scale2 = log2_scale(a.temperature[row]);
      const Partial mine = scan_columns<T, kThreads>(x, 0, a.logits.vocab_size, scale2);
      const Partial whole = reduce_block<kThreads>(mine, scale2);
      if (threadIdx.x == 0) decide(a, row, x, whole, &decision);
    }
    __syncthreads();
    if (a.gradient.data)
      write_gradient<T, kThreads>(x, row_at<T>(a.gradient, row), a.logits.vocab_size, a.ids[row], decision,
                                  a.zeroed);
    // The next row's decision must not overtake a thread that is still writing this one's.
    __syncthreads();
  }
}

// Threads add up every kThreads-th row, thread 0 the threads: an order that depends on the number of rows only.
__global__ void __launch_bounds__(kThreads) sum_losses(const double* losses, int64_t count, double* loss) {
  ADAPT_SHARED double sums[kThreads];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += losses[i];
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < kThreads; ++i) sum += sums[i];
  *loss = sum;
}

template <typename T>
int loss(const PolicyLossArguments& a, cudaStream_t stream) {
  if (a.logits.count > 0) ADAPT_LAUNCH(loss_rows<T>, grid_of(a.logits.count), kThreads, stream, a);
  ADAPT_LAUNCH(sum_losses, 1, kThreads, stream, a.losses, a.logits.count, a.loss);
  return last_status();
}

}  // namespace
}  // namespace adapt

extern "C" int adapt_policy_loss_cuda(const PolicyLossArguments* arguments, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  switch (arguments->logits.type) {
    case kFloat32: return adapt::loss<float>(*arguments, on);
    case kBfloat16: return adapt::loss<__nv_bfloat16>(*arguments, on);
    case kFloat16: return adapt::loss<__half>(*arguments, on);
  }
  return 1;
}
