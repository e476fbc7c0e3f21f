// token_logprobs on the GPU: every tile of a row leaves a partial sum, which are merged in order, so a row's bits depend on
// nothing but the row; policy_loss sums in the same order.
#include "adapt/token_logprobs.h"

#include "row_tiles.cuh"

namespace adapt {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
// Of a row, one after another by a warp: what a row costs once is shared by them.
constexpr int kWarpTiles = 4;

__host__ __device__ inline int64_t slices_of(int64_t tiles) {
  return (tiles + kWarps * kWarpTiles - 1) / (kWarps * kWarpTiles);
}

// Blocks are slices of a row, then rows.
template <typename T>
__global__ void __launch_bounds__(kThreads) scan_tiles(TokenLogprobsArguments a, Partial* partials) {
  const int64_t n = a.logits.vocab_size, tiles = tiles_of(n);
  const unsigned slices = unsigned(slices_of(tiles)), step = gridDim.x / slices;
  const int first = blockIdx.x % slices * (kWarps * kWarpTiles) + threadIdx.x / kWarp;
  const int last = tiles < first + kWarps * kWarpTiles ? int(tiles) : first + kWarps * kWarpTiles;
  for (int64_t row = blockIdx.x / slices; row < a.logits.count; row += step) {
    if (a.mask && !a.mask[row]) continue;
    const float scale2 = log2_scale(a.temperature[row]);
    const T* x = row_at<T>(a.logits, row);
#pragma unroll 1
    for (int tile = first; tile < last; tile += kWarps) {
      LanePacks<T> mine;
      load_tile(x, int64_t(tile) * kTileColumns, n, &mine);
      const Partial partial = tile_partial(mine, scale2);
      if (threadIdx.x % kWarp == 0) partials[row * tiles + tile] = partial;
    }
  }
}

// A warp per row.
template <typename T>
__global__ void __launch_bounds__(kThreads) merge_rows(TokenLogprobsArguments a, const Partial* partials) {
  const int64_t tiles = tiles_of(a.logits.vocab_size);
  for (int64_t row = blockIdx.x * int64_t(kWarps) + threadIdx.x / kWarp; row < a.logits.count;
       row += int64_t(gridDim.x) * kWarps) {
    double* out = a.statistics ? a.statistics + 3 * row : nullptr;
    const bool leader = threadIdx.x % kWarp == 0;
    if (a.mask && !a.mask[row]) {
      if (leader) a.logprobs[row] = a.entropy[row] = 0;
      for (int k = 0; leader && out && k < 3; ++k) out[k] = 0;
      continue;
    }
    const double temperature = a.temperature[row];
    const Partial whole = merge_tiles(partials + row * tiles, tiles, log2_scale(temperature));
    if (!leader) continue;
    const RowStatistics s{whole.max, whole.mass, whole.moment * kLn2};
    // What is written early need not be kept across the divisions' slow path: on sm_80 it would spill.
    if (out) {
      out[0] = s.max;
      out[1] = s.mass;
      out[2] = s.moment;
    }
    a.entropy[row] = float(entropy_of(s));
    const TokenLogit token = token_logit(row_at<T>(a.logits, row), a.logits.vocab_size, a.ids[row]);
    a.logprobs[row] = token_logprob(token, s, temperature);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) gradient_rows(LogitGradientArguments a) {
  ADAPT_SHARED GradientRow decision;
  const int64_t n = a.logits.vocab_size;
  for (int64_t row = blockIdx.x; row < a.logits.count; row += gridDim.x) {
    const T* x = row_at<T>(a.logits, row);
    if (threadIdx.x == 0) {
      decision = GradientRow{};
      if (!a.mask || a.mask[row]) {
        const RowStatistics s{a.statistics[3 * row], a.statistics[3 * row + 1], a.statistics[3 * row + 2]};
        decision = gradient_row(token_logit(x, n, a.ids[row]), s, a.temperature[row], a.logprob_slope[row],
                                a.entropy_slope ? a.entropy_slope[row] : 0.0);
      }
    }
    __syncthreads();
    T* out = row_at<T>(a.gradient, row);
    const int tiles = decision.any || !a.zeroed ? int(tiles_of(n)) : 0;
    write_tiles(x, out, threadIdx.x / kWarp, tiles, kWarps, n, a.ids[row], decision);
    __syncthreads();
  }
}

template <typename T>
int score(const TokenLogprobsArguments& a, void* workspace, cudaStream_t stream) {
  if (a.logits.count == 0) return 0;
  const int64_t slices = slices_of(tiles_of(a.logits.vocab_size)), most = kMostBlocks / slices;
  Partial* partials = static_cast<Partial*>(workspace);
  const int64_t rows = a.logits.count < most ? a.logits.count : most;
  ADAPT_LAUNCH(scan_tiles<T>, unsigned(rows * slices), kThreads, stream, a, partials);
  ADAPT_LAUNCH(merge_rows<T>, grid_of((a.logits.count + kWarps - 1) / kWarps), kThreads, stream, a, partials);
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
  return rows * adapt::tiles_of(vocab_size) * int64_t(sizeof(adapt::Partial));
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
