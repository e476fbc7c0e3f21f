"""policy_loss: clipped policy-gradient loss with an advantage and a loss kind per token, and its gradient."""

from adapt_kernels.dispatch import choose_name
from adapt_kernels.ops.policy_loss import native, reference
from adapt_kernels.ops.policy_loss.arguments import (
    KIND_CISPO,
    KIND_NONE,
    KIND_PPO,
    KIND_REINFORCE,
    PolicyRows,
    PolicySettings,
    check_gradient,
    prepare,
)
from adapt_kernels.ops.policy_loss.result import PolicyLoss
from adapt_kernels.ops.policy_loss.terms import PolicyTerms, policy_terms
from adapt_kernels.ops.token_logprobs import vocab_offset, vocab_parallel_logprobs
from adapt_kernels.ops.token_rows import check_logits

__all__ = [
    "KIND_CISPO",
    "KIND_NONE",
    "KIND_PPO",
    "KIND_REINFORCE",
    "PolicyLoss",
    "PolicyRows",
    "PolicySettings",
    "PolicyTerms",
    "check_gradient",
    "policy_loss",
    "policy_terms",
    "prepare",
    "reference_loss",
]

_BACKENDS = {"reference": reference, "native": native}
reference_loss = reference.policy_loss


def policy_loss(
    logits,
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
    grad_out=None,
    grad_scale=1.0,
    process_group=None,
) -> PolicyLoss:
    """Sum over rows of mask * weight * term, with the gradient of the logits computed in the same visit of each row.

        logp, H = token_logprobs(logits, ids, temperature=temperature, entropy=True)
        r = exp(clamp(logp - old_logprobs, -20, 20));  s = clamp(r, 1 - clip_low, 1 + clip_high);  A = advantages
        kind 0: 0    kind 1, PPO: max(-A r, -A s), and if A < 0 at most -A dual_clip
        kind 2, CISPO: -A s logp, s held constant    kind 3, REINFORCE: -A logp
        term = that + kl_coef (e^d - d - 1) - entropy_coef H,   d = clamp(ref_logprobs - logp, -20, 20)

    ADaPT (arXiv 2606.19919) is kind 2 on the mode token with old_logprobs log(0.5) there, kind 1 elsewhere.

    A "row argument" is a number or a tensor of the leading shape of `logits`; for [B, T, V] also [B].

    Args:
        logits, ids, mask, temperature, backend: as for `token_logprobs`.
        old_logprobs: row argument, the behaviour policy's log-probs. No gradient flows into it or any row argument.
        advantages: row argument. 0 contributes exactly nothing; infinite or NaN spoils its own row and the loss.
        kinds: row argument, integers 0..3; None = 1 everywhere.
        clip_low, clip_high, dual_clip: numbers; dual_clip=None leaves the dual clip out. On an edge gradient flows.
        weights: row argument; every normaliser (token mean, sequence mean, ...) belongs in here. None = 1.
        ref_logprobs: row argument, the reference policy's log-probs; needed with kl_coef (the k3 estimator).
        grad_out: where the gradient of the logits goes: a tensor of their shape, dtype and device, last dimension
            contiguous, or `logits` itself (which are then gone after the call). None = new memory. Autograd hands out
            this very tensor; a second call overwrites it. The reference backend refuses it.
        grad_scale: the gradient is written times this, and backward() divides it out again. Set it to what the loss
            will be multiplied by (a gradient scaler's scale, 1 / accumulation steps): backward() then has nothing V
            wide left to do, and small float16 gradients do not vanish. On CUDA, where the comparison is made on the
            device, any other factor is multiplied in place, and a second backward() through one call is refused.

        process_group: as for `token_logprobs`: the vocabulary is split, and the loss is whole on every process. The
            gradient then takes a second read, in backward(); grad_out is refused.

    Returns PolicyLoss: loss, a differentiable scalar; logprobs, entropy, ratio and clipped (bool) in the leading shape,
    without gradient; masked rows hold 0, 0, 1 and False. Float32, float64 for float64 logits. The log-probs are bit for
    bit those of `token_logprobs`, and the ratio of a row whose `old_logprobs` they are is exactly 1.

    One read of the logits; with a gradient, one write too. A masked row is not read, and one whose slope is 0 (clipped,
    advantage 0) not a second time; both get zeros. The sum runs in row order. No randomness, no host sync on CUDA.
    Raises ValueError or TypeError naming the argument; RuntimeError if an explicit backend cannot run, and for a second
    derivative.
    """
    name = choose_name("policy_loss", backend, logits)
    check_logits(logits)
    offset, vocab_size = (0, None) if process_group is None else vocab_offset(logits, process_group)
    rows = prepare(
        logits,
        ids,
        old_logprobs,
        advantages,
        mask,
        kinds,
        weights,
        ref_logprobs,
        temperature,
        vocab_size,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        kl_coef=kl_coef,
        entropy_coef=entropy_coef,
    )
    check_gradient(logits, grad_out, grad_scale)
    if process_group is None:
        out = _BACKENDS[name].policy_loss(rows, grad_out, float(grad_scale))
    elif grad_out is None:
        logprobs, entropy = vocab_parallel_logprobs(rows.tokens, offset, process_group, name)
        out = reference.policy_loss_of(logprobs, entropy, rows)
    else:
        raise ValueError("grad_out cannot be used with a process_group: leave it out")
    return out.reshape(logits.shape[:-1])
