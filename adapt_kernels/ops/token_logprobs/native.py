"""token_logprobs in C++ and CUDA (`csrc/*/token_logprobs.*`), as torch library ops with autograd."""

import torch

from adapt_kernels.library import register
from adapt_kernels.native.kernels import DEVICES as DEVICES
from adapt_kernels.native.kernels import launch
from adapt_kernels.native.rows import address, gradient_rows, large_empty, logit_rows
from adapt_kernels.ops.token_rows import TokenRows

_ROWS = "Tensor logits, Tensor ids, Tensor? mask, float temperature, Tensor? temperature_rows"


def token_logprobs(rows: TokenRows, entropy: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """See `adapt_kernels.token_logprobs`; [N] each."""
    logprobs, entropies, _ = torch.ops.adapt_kernels.token_logprobs(*rows)
    return logprobs, entropies if entropy else None


def row_statistics(rows: TokenRows) -> torch.Tensor:
    """[N, 3] float64: maximum m, mass = sum e^y and moment = sum e^y y with y = (logits - m) / temperature."""
    return torch.ops.adapt_kernels.token_logprobs(*rows)[2]


def logit_gradient(rows: TokenRows, statistics, logprob_slope, entropy_slope) -> torch.Tensor:
    """Gradient [B, T, V] of what depends on each row through its log-prob and entropy; an id outside has no column."""
    return torch.ops.adapt_kernels.logit_gradient(*rows, statistics, logprob_slope, entropy_slope)


def _score(logits, ids, mask, temperature, temperature_rows):
    count, device = ids.shape[0], logits.device
    logprobs = torch.empty(count, dtype=torch.float32, device=device)
    entropy, statistics = torch.empty_like(logprobs), torch.empty(count, 3, dtype=torch.float64, device=device)

    def workspace(kernels):
        return torch.empty(kernels.token_logprobs_workspace(count, logits.shape[-1]), dtype=torch.uint8, device=device)

    launch(
        "token_logprobs",
        device,
        *logit_rows(logits),
        *map(address, (ids, mask)),
        temperature,
        *map(address, (temperature_rows, logprobs, entropy, statistics)),
        workspace=workspace,
    )
    return logprobs, entropy, statistics


def _gradient(logits, ids, mask, temperature, temperature_rows, statistics, logprob_slope, entropy_slope):
    gradient, zeroed = large_empty(logits.shape, logits.dtype, logits.device)
    logprob_slope = logprob_slope.contiguous()
    entropy_slope = None if entropy_slope is None else entropy_slope.contiguous()
    launch(
        "logit_gradient",
        logits.device,
        *logit_rows(logits),
        *map(address, (ids, mask)),
        temperature,
        *map(address, (temperature_rows, statistics, logprob_slope, entropy_slope)),
        *gradient_rows(gradient),
        zeroed,
    )
    return gradient


def _fake_score(logits, ids, mask, temperature, temperature_rows):
    rows = ids.new_empty(ids.shape, dtype=torch.float32)
    return rows, torch.empty_like(rows), ids.new_empty((*ids.shape, 3), dtype=torch.float64)


def _fake_gradient(logits, *_):
    return logits.new_empty(logits.shape)


def _save(ctx, inputs, output):
    logits, ids, mask, ctx.temperature, temperature_rows = inputs
    ctx.save_for_backward(logits, ids, mask, temperature_rows, output[2])
    ctx.set_materialize_grads(False)


def _backward(ctx, logprobs_grad, entropy_grad, _):
    logits, ids, mask, temperature_rows, statistics = ctx.saved_tensors
    if logprobs_grad is None and entropy_grad is None:
        return None, None, None, None, None
    zeros = statistics.new_zeros(ids.shape)
    slope = zeros if logprobs_grad is None else logprobs_grad.double()
    bend = None if entropy_grad is None else entropy_grad.double()
    gradient = torch.ops.adapt_kernels.logit_gradient(
        logits, ids, mask, ctx.temperature, temperature_rows, statistics, slope, bend
    )
    return gradient, None, None, None, None


def _no_second_derivative(ctx, *_):
    raise RuntimeError("token_logprobs has no second derivative: call backward without create_graph=True")


register(f"token_logprobs({_ROWS}) -> (Tensor, Tensor, Tensor)", _score, _fake_score, backward=_backward, save=_save)
register(
    f"logit_gradient({_ROWS}, Tensor statistics, Tensor logprob_slope, Tensor? entropy_slope) -> Tensor",
    _gradient,
    _fake_gradient,
    backward=_no_second_derivative,
)
