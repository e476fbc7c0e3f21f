"""linear_policy_loss in chunks: GEMM, policy_loss's C++ or CUDA kernel in place, two GEMMs; as a torch library op."""

import torch

from adapt_kernels.library import register
from adapt_kernels.native.kernels import DEVICES as DEVICES
from adapt_kernels.native.rows import large_empty, rescaled
from adapt_kernels.ops.lm_head import HeadGradients, LmHead
from adapt_kernels.ops.policy_loss import PolicyLoss, PolicyRows, PolicySettings, policy_terms
from adapt_kernels.ops.token_rows import TokenRows

_ROWS = (
    "Tensor ids, Tensor? mask, float temperature, Tensor old_logprobs, Tensor advantages, Tensor? kinds, "
    "Tensor? weights, Tensor? ref_logprobs, float[] settings"
)
_SCHEMA = (
    "linear_policy_loss(Tensor hidden, Tensor weight, Tensor? bias, float? softcap, float logit_scale, "
    f"{_ROWS}, int? chunk_rows, float grad_scale, bool[3] wants) -> (Tensor loss, Tensor logprobs, Tensor entropy, "
    "Tensor ratio, Tensor clipped, Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)"
)
_NUM_INPUTS = 17


def linear_policy_loss(
    hidden: torch.Tensor, head: LmHead, rows: PolicyRows, chunk_rows: int | None, grad_scale: float
) -> PolicyLoss:
    """See `adapt_kernels.linear_policy_loss`; per-row results are [N]."""
    inputs = (hidden, head.weight, head.bias)
    wants = [torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in inputs]
    loss, *results = torch.ops.adapt_kernels.linear_policy_loss(
        hidden,
        *head,
        *rows.tokens[1:4],
        *rows[1:6],
        list(rows.settings),
        chunk_rows,
        grad_scale,
        wants,
    )
    return PolicyLoss(loss, *(field.detach() for field in results[:4]))


def _loss(hidden, weight, bias, softcap, logit_scale, ids, mask, temperature, *given):
    *arguments, settings, chunk_rows, grad_scale, wants = given
    head = LmHead(weight, bias, softcap, logit_scale)
    temperature = head.divisor(temperature)
    count = ids.shape[0]
    out = [hidden.new_zeros(count, dtype=torch.float32) for _ in range(2)]
    out += [torch.ones_like(out[0]), torch.zeros_like(out[0], dtype=torch.bool)]
    gradients = HeadGradients(hidden, head, wants)
    total = hidden.new_zeros((), dtype=torch.float64)
    buffer = None
    active = torch.arange(count, device=hidden.device) if mask is None else mask.nonzero().squeeze(1)
    for rows in head.chunks(active, chunk_rows):
        states = hidden[rows]
        if buffer is None:
            buffer, _ = large_empty(torch.Size((len(rows), weight.shape[0])), hidden.dtype, hidden.device)
        logits = head.project(states, buffer)
        tokens = TokenRows(logits.unsqueeze(1), ids[rows], None, temperature, None)
        parts = [None if a is None else a[rows] for a in arguments]
        chunk = PolicyRows._make([tokens, *parts, PolicySettings(*settings)])
        results, gradient = _run(chunk, any(wants), grad_scale, keep_logits=softcap is not None)
        total += results[0].double()
        for field, values in zip(out, results[1:], strict=True):
            field[rows] = values
        if any(wants):
            kept = _with_gradient(chunk, results)
            _accumulate(gradients, rows, states, gradient, logits, kept)
    empty = hidden.new_empty(0)
    return total.float(), *out, *(empty if grad is None else grad for grad in gradients.results())


def _run(rows: PolicyRows, with_gradient: bool, grad_scale: float, keep_logits: bool):
    """Results of one chunk, and its gradient: in place of the logits unless they are still needed."""
    logits = rows.tokens.logits
    arguments = (*rows.tokens, *rows[1:6], *rows.settings, grad_scale)
    if not with_gradient:
        return torch.ops.adapt_kernels.policy_loss(*arguments, False)[:5], None
    gradient = torch.empty_like(logits) if keep_logits else logits
    return torch.ops.adapt_kernels.policy_loss_(*arguments, gradient), gradient.squeeze(1)


def _with_gradient(rows: PolicyRows, results) -> torch.Tensor | None:
    """The rows of a chunk whose gradient is not exactly 0; None = leave none out."""
    terms = policy_terms(results[1].double(), results[2].double(), rows)
    counts = (terms.logprob_slope != 0) | (terms.entropy_slope != 0)
    kept = counts.nonzero().squeeze(1)
    # Taking rows out copies what stays: not for a few.
    return kept if len(kept) < 0.9 * len(counts) else None


def _accumulate(gradients: HeadGradients, rows, states, gradient, logits, kept) -> None:
    if kept is not None:
        rows, states, gradient, logits = rows[kept], states[kept], gradient[kept], logits[kept]
    if len(rows):
        gradient = gradients.head.pull_back(gradient, logits, states.dtype)
        gradients.add(rows, states, gradient)


def _fake_loss(hidden, weight, bias, softcap, logit_scale, ids, *arguments):
    rows = ids.new_empty(ids.shape, dtype=torch.float32)
    results = ids.new_empty((), dtype=torch.float32), rows, *(torch.empty_like(rows) for _ in range(2))
    heads = zip((hidden, weight, bias), arguments[-1], strict=True)
    grads = (hidden.new_empty(x.shape if wanted else 0) for x, wanted in heads)
    return *results, torch.empty_like(rows, dtype=torch.bool), *grads


def _save(ctx, inputs, output):
    ctx.save_for_backward(*output[5:])
    ctx.grad_scale, ctx.wants = inputs[-2:]
    ctx.set_materialize_grads(False)


def _backward(ctx, loss_grad, *_):
    if loss_grad is None:
        return (None,) * _NUM_INPUTS
    gradients = [
        rescaled("linear_policy_loss", gradient, loss_grad, ctx.grad_scale) if wanted else None
        for gradient, wanted in zip(ctx.saved_tensors, ctx.wants, strict=True)
    ]
    return *gradients, *[None] * (_NUM_INPUTS - 3)


register(_SCHEMA, _loss, _fake_loss, backward=_backward, save=_save)
