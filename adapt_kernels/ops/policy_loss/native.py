"""policy_loss in C++ and CUDA (`csrc/*/policy_loss.*`), as torch library ops with autograd."""

import torch

from adapt_kernels.library import register
from adapt_kernels.native import kernels, rows
from adapt_kernels.native.kernels import DEVICES as DEVICES
from adapt_kernels.native.kernels import launch
from adapt_kernels.native.rows import address, gradient_rows, large_empty, logit_rows
from adapt_kernels.ops.policy_loss.arguments import PolicyRows
from adapt_kernels.ops.policy_loss.result import PolicyLoss

_ROWS = (
    "Tensor logits, Tensor ids, Tensor? mask, float temperature, Tensor? temperature_rows, Tensor old_logprobs, "
    "Tensor advantages, Tensor? kinds, Tensor? weights, Tensor? ref_logprobs, float clip_low, float clip_high, "
    "float dual_clip, float kl_coef, float entropy_coef, float grad_scale"
)
_RESULTS = "Tensor loss, Tensor logprobs, Tensor entropy, Tensor ratio, Tensor clipped"
_NUM_INPUTS = 17


def policy_loss(rows: PolicyRows, grad_out: torch.Tensor | None, grad_scale: float) -> PolicyLoss:
    """See `adapt_kernels.policy_loss`; per-row results are [N]."""
    arguments = (*rows.tokens, *rows[1:6], *rows.settings, grad_scale)
    wanted = rows.tokens.logits.requires_grad and torch.is_grad_enabled()
    if grad_out is None or not wanted:
        loss, *results, _ = torch.ops.adapt_kernels.policy_loss(*arguments, wanted)
    else:
        grad_out = grad_out.detach() if grad_out.ndim == 3 else grad_out.detach().unsqueeze(1)
        loss, *results = _GradientInto.apply(grad_out, *arguments)
    return PolicyLoss(loss, *(field.detach() for field in results))


def _loss(logits, *given):
    *arguments, with_gradient = given
    memory = logits.shape, logits.dtype, logits.device
    gradient, zeroed = large_empty(*memory) if with_gradient else (None, False)
    results = _run(logits, *arguments, gradient, zeroed)
    return *results, logits.new_empty(0) if gradient is None else gradient


def _loss_into(*arguments):
    return _run(*arguments, False)


def _run(logits, ids, mask, temperature, temperature_rows, old, advantages, kinds, weights, ref_logprobs, *more):
    *settings, gradient, zeroed = more
    logprobs = torch.empty(ids.shape, dtype=torch.float32, device=logits.device)
    entropy, ratio = torch.empty_like(logprobs), torch.empty_like(logprobs)
    clipped, losses = (torch.empty_like(logprobs, dtype=dtype) for dtype in (torch.bool, torch.float64))
    total = losses.new_zeros(())
    launch(
        "policy_loss",
        logits.device,
        *logit_rows(logits),
        *map(address, (ids, mask)),
        temperature,
        *map(address, (temperature_rows, old, advantages, kinds, weights, ref_logprobs)),
        *settings,
        *map(address, (total, losses, logprobs, entropy, ratio, clipped)),
        *gradient_rows(gradient),
        zeroed,
    )
    return total.float(), logprobs, entropy, ratio, clipped


def _fake_results(ids):
    rows = ids.new_empty(ids.shape, dtype=torch.float32)
    loss, clipped = ids.new_empty((), dtype=torch.float32), torch.empty_like(rows, dtype=torch.bool)
    return loss, rows, torch.empty_like(rows), torch.empty_like(rows), clipped


def _fake_loss(logits, ids, *arguments):
    return *_fake_results(ids), logits.new_empty(logits.shape if arguments[-1] else 0)


def _fake_loss_into(logits, ids, *_):
    return _fake_results(ids)


def _save(ctx, inputs, output):
    ctx.save_for_backward(output[5])
    ctx.grad_scale, ctx.handed_out = inputs[15], False
    ctx.set_materialize_grads(False)


def _backward(ctx, loss_grad, *_):
    gradient = None if loss_grad is None else _hand_out(ctx, loss_grad)
    return gradient, *[None] * (_NUM_INPUTS - 1)


def _hand_out(ctx, loss_grad: torch.Tensor) -> torch.Tensor:
    """The gradient for what the loss is in fact multiplied by; on a GPU scaled in place, if at all."""
    (gradient,) = ctx.saved_tensors
    if not kernels.on_gpu(gradient.device) or type(loss_grad) is not torch.Tensor:
        return rows.rescaled("policy_loss", gradient, loss_grad, ctx.grad_scale)
    rows.no_second_derivative("policy_loss")
    if ctx.handed_out:
        raise RuntimeError("policy_loss gives its gradient once on a GPU, where it is scaled in place: call it again")
    ctx.handed_out = True
    multiplier = loss_grad.float()
    launch("rescale", gradient.device, *logit_rows(gradient), address(multiplier), ctx.grad_scale)
    return gradient


class _GradientInto(torch.autograd.Function):
    """policy_loss with its gradient in the caller's memory."""

    @staticmethod
    def forward(ctx, grad_out, logits, *arguments):
        results = torch.ops.adapt_kernels.policy_loss_(logits, *arguments, grad_out)
        # Autograd then refuses what a later call overwrites, and whoever kept logits that are gone.
        torch.autograd.graph.increment_version(grad_out)
        ctx.save_for_backward(grad_out)
        ctx.grad_scale, ctx.handed_out = arguments[-1], False
        ctx.mark_non_differentiable(*results[1:])
        return results

    @staticmethod
    def backward(ctx, loss_grad, *_):
        gradient = _hand_out(ctx, loss_grad)
        return None, gradient, *[None] * (_NUM_INPUTS - 2)


register(
    f"policy_loss({_ROWS}, bool with_gradient) -> ({_RESULTS}, Tensor gradient)",
    _loss,
    _fake_loss,
    backward=_backward,
    save=_save,
)
register(f"policy_loss_({_ROWS}, Tensor(a!) grad_out) -> ({_RESULTS})", _loss_into, _fake_loss_into)
