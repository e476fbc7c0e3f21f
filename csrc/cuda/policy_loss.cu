// policy_loss on the GPU. A row is read once: a cluster of blocks keeps it in shared memory between its statistics and its
// gradient, which goes out in one write. A row that fits no cluster is read a second time. Same bits either way.
#include "adapt/policy_loss.h"

#include "row_layout.cuh"
#include "row_tiles.cuh"

namespace adapt {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// By one thread of each block: what the row's gradient is made of, and by the first block's the row's results.
__device__ GradientRow decide(const PolicyLossArguments& a, int64_t row, const TokenLogit& token, const Partial& whole,
                              bool first) {
  const double temperature = a.temperature[row];
  const RowStatistics s{whole.max, whole.mass, whole.moment * kLn2};
  const double entropy = entropy_of(s);
  const float logprob = token_logprob(token, s, temperature);
  const PolicyRow settings{a.old_logprobs[row],
                           a.advantages[row],
                           a.weights[row],
                           LossKind(a.kinds[row]),
                           a.ref_logprobs != nullptr,
                           a.ref_logprobs ? a.ref_logprobs[row] : 0.0};
  const PolicyTerm term = policy_term(double(logprob), entropy, settings, a.settings);
  if (first) {
    a.entropy[row] = float(entropy);
    a.logprobs[row] = logprob;
    a.losses[row] = term.loss;
    a.ratio[row] = float(term.ratio);
    a.clipped[row] = term.clipped;
  }
  return gradient_row(token, s, temperature, term.logprob_slope * a.gradient_scale,
                      term.entropy_slope * a.gradient_scale);
}

__device__ void leave_out(const PolicyLossArguments& a, int64_t row) {
  a.losses[row] = 0;
  a.logprobs[row] = a.entropy[row] = 0;
  a.ratio[row] = 1;
  a.clipped[row] = false;
}

// One thread's, for the others and for itself later: registers kept across a whole row would spill.
struct RowState {
  TokenLogit token;
  GradientRow decision;
};

// A block's share of a cluster's shared memory.
template <typename T>
struct BlockMemory {
  T* staged;  // its tiles of the row
  RowState* row;
  Partial* partials;  // all tiles of the row; two of them, as a neighbour may be a row ahead

  __device__ BlockMemory(unsigned char* shared, const RowLayout& layout)
      : staged(reinterpret_cast<T*>(shared)),
        row(reinterpret_cast<RowState*>(shared + layout.staged_bytes)),
        partials(reinterpret_cast<Partial*>(row + 1)) {}
};

// This block's tiles: statistics to every block of the cluster, the columns to shared memory.
template <typename T>
__device__ void scan_tiles(const T* x, int64_t n, float scale2, const RowLayout& layout, const BlockMemory<T>& memory,
                           Partial* partials) {
  const int lane = threadIdx.x % kWarp;
  const int first = int(layout.first_tile(cluster_rank())), last = int(layout.last_tile(cluster_rank()));
  const bool staged = layout.staged();
#pragma unroll 1
  for (int tile = first + threadIdx.x / kWarp; tile < last; tile += kWarps) {
    LanePacks<T> mine;
    load_tile(x, int64_t(tile) * kTileColumns, n, &mine);
    if (staged) stage_tile(mine, memory.staged + (tile - first) * kTileColumns);
    const Partial found = tile_partial(mine, scale2);
    if (lane == 0)
      for (unsigned rank = 0; rank < layout.cluster; ++rank) *in_block(partials + tile, rank) = found;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) loss_rows(PolicyLossArguments a, RowLayout layout) {
  ADAPT_DYNAMIC_SHARED(shared);
  const BlockMemory<T> memory(shared, layout);
  const bool first = cluster_rank() == 0;
  const int64_t n = a.logits.vocab_size;
  // No block writes to another that has not begun.
  if (layout.cluster > 1) cluster_sync();
  Partial* partials = memory.partials;
  for (int64_t row = blockIdx.x / layout.cluster; row < a.logits.count; row += gridDim.x / layout.cluster) {
    const T* x = row_at<T>(a.logits, row);
    if (a.mask && !a.mask[row]) {
      if (threadIdx.x == 0) {
        memory.row->decision = GradientRow{};
        if (first) leave_out(a, row);
      }
      __syncthreads();
    } else {
      const float scale2 = log2_scale(a.temperature[row]);
      // Before another block writes the gradient over it.
      if (threadIdx.x == 0) memory.row->token = token_logit(x, n, a.ids[row]);
      scan_tiles(x, n, scale2, layout, memory, partials);
      if (layout.cluster > 1) cluster_sync();
      else __syncthreads();
      if (threadIdx.x < kWarp) {
        const Partial whole = merge_tiles(partials, layout.tiles, scale2);
        if (threadIdx.x == 0) memory.row->decision = decide(a, row, memory.row->token, whole, first);
      }
      partials = partials == memory.partials ? partials + layout.tiles : memory.partials;
      __syncthreads();
    }
    if (a.gradient.data && (memory.row->decision.any || !a.zeroed)) {
      const int begin = int(layout.first_tile(cluster_rank()));
      const T* from = layout.staged() ? memory.staged - int64_t(begin) * kTileColumns : x;
      write_tiles(from, row_at<T>(a.gradient, row), begin + int(threadIdx.x / kWarp),
                  int(layout.last_tile(cluster_rank())), kWarps, n, a.ids[row], memory.row->decision);
    }
    // The next row's decision must not overtake a thread that is still writing this one's.
    __syncthreads();
  }
}

// Threads add up every kThreads-th row, then each other in a tree: an order that depends on the number of rows only.
__global__ void __launch_bounds__(kThreads) sum_losses(const double* losses, int64_t count, double* loss) {
  ADAPT_SHARED double sums[kThreads];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += losses[i];
  sums[threadIdx.x] = sum;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) *loss = sums[0];
}

template <typename T>
__global__ void __launch_bounds__(kThreads) rescale_rows(RescaleArguments a) {
  const float factor = float(*a.loss_gradient / a.written_for);
  if (factor == 1) return;
  const int64_t tiles = tiles_of(a.gradient.vocab_size);
  for (int64_t job = blockIdx.x * int64_t(kWarps) + threadIdx.x / kWarp; job < a.gradient.count * tiles;
       job += int64_t(gridDim.x) * kWarps)
    scale_tile(row_at<T>(a.gradient, job / tiles), job % tiles * kTileColumns, a.gradient.vocab_size, factor);
}

template <typename T>
int rescale(const RescaleArguments& a, cudaStream_t stream) {
  // Few enough that finding nothing to do costs little.
  constexpr int64_t kBlocks = 2048;
  const int64_t blocks = (a.gradient.count * tiles_of(a.gradient.vocab_size) + kWarps - 1) / kWarps;
  if (blocks > 0) ADAPT_LAUNCH(rescale_rows<T>, unsigned(blocks < kBlocks ? blocks : kBlocks), kThreads, stream, a);
  return last_status();
}

template <typename T>
int loss(const PolicyLossArguments& a, cudaStream_t stream) {
  if (a.logits.count > 0) {
    const int64_t tiles = tiles_of(a.logits.vocab_size), extra = sizeof(RowState) + 2 * sizeof(Partial) * tiles;
    RowLayout layout = row_layout(tiles, a.gradient.data ? sizeof(T) * kTileColumns : 0, extra, device_limits());
    if (!launch_rows(loss_rows<T>, a, layout, kThreads, stream)) {
      layout = unstaged_layout(tiles, extra);
      if (!launch_rows(loss_rows<T>, a, layout, kThreads, stream)) return 2;
    }
  }
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

extern "C" int adapt_rescale_cuda(const RescaleArguments* arguments, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  switch (arguments->gradient.type) {
    case kFloat32: return adapt::rescale<float>(*arguments, on);
    case kBfloat16: return adapt::rescale<__nv_bfloat16>(*arguments, on);
    case kFloat16: return adapt::rescale<__half>(*arguments, on);
  }
  return 1;
}
