"""linear_policy_loss: policy_loss from hidden states and the head's weight; the logits exist a chunk at a time."""

import torch

from adapt_kernels.dispatch import choose_name
from adapt_kernels.ops.linear_policy_loss import native, reference
from adapt_kernels.ops.lm_head import check_head
from adapt_kernels.ops.policy_loss import PolicyLoss, check_gradient, prepare

__all__ = ["linear_policy_loss"]

_BACKENDS = {"reference": reference, "native": native}


def linear_policy_loss(
    hidden,
    weight,
    ids,
    old_logprobs,
    advantages,
    mask=None,
    kinds=None,
    clip_low=0.2,
    clip_high=0.28,
    dual_clip=3.0,
    weights=None,
    ref_logprobs=None,
    kl_coef=0.0,
    entropy_coef=0.0,
    temperature=1.0,
    backend="auto",
    *,
    bias=None,
    softcap=None,
    logit_scale=1.0,
    chunk_rows=None,
    grad_scale=1.0,
) -> PolicyLoss:
    """`policy_loss` of the logits cap(logit_scale * (hidden @ weight.T + bias)), cap(x) = softcap * tanh(x / softcap).

        for each chunk of the rows that count:
            logits = head(hidden)                                  one GEMM
            loss, gradient = policy_loss(logits), in place         one visit of each row
            grad_hidden, grad_weight += gradient                   two GEMMs, over the rows that have a gradient

    Differentiable, once, in hidden, weight and bias; the gradients are made in the forward pass, so that no logits are
    kept or computed twice. Masked rows cost nothing, rows of slope 0 (clipped, advantage 0) no gradient GEMM.

    Args:
        hidden: [N, D] or [B, T, D], float32, bfloat16 or float16 (the reference backend also float64); the last hidden
            states at the positions that predict `ids`.
        weight: [V, D] and bias: [V] or None, of the head, in hidden's dtype and on its device.
        softcap: final_logit_softcapping of the model (Gemma 2), above 0; None = none.
        logit_scale: what the model multiplies its logits by (Cohere's logit_scale; Granite: 1 / logits_scaling).
        temperature: a number above 0, for all rows.
        chunk_rows: rows of logits alive at once; None = about 128 MB of them, 600 on CUDA, independent of N.
        ids, old_logprobs, advantages, mask, kinds, clip_low, clip_high, dual_clip, weights, ref_logprobs, kl_coef,
        entropy_coef, grad_scale, backend: as for `policy_loss`, in the leading shape of `hidden`.

    Returns PolicyLoss as `policy_loss` does, per-row fields in the leading shape of `hidden`. Logits are rounded to
    hidden's dtype, as the model's own are; with a softcap they are bent in float32. Gradients of weight and bias are
    summed in float32. No randomness. Which rows count, and which have a gradient, is read on the host: on CUDA one sync
    per call with a mask, and one per chunk with a gradient. Raises ValueError or TypeError naming the argument;
    RuntimeError if an explicit backend cannot run, and for a second derivative.
    """
    head = check_head(hidden, weight, bias, softcap, logit_scale, chunk_rows)
    if torch.is_tensor(temperature):
        raise TypeError("temperature must be one number for all rows of linear_policy_loss; got a tensor")
    chosen = _BACKENDS[choose_name("linear_policy_loss", backend, hidden)]
    rows = prepare(
        # Stands for the logits, which do not exist: one number, in their shape.
        hidden.detach().new_empty(()).expand(*hidden.shape[:-1], 1),
        ids,
        old_logprobs,
        advantages,
        mask,
        kinds,
        weights,
        ref_logprobs,
        temperature,
        vocab_size=weight.shape[0],
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        kl_coef=kl_coef,
        entropy_coef=entropy_coef,
    )
    check_gradient(hidden, None, grad_scale)
    out = chosen.linear_policy_loss(hidden.flatten(0, -2), head, rows, chunk_rows, float(grad_scale))
    return out.reshape(hidden.shape[:-1])
