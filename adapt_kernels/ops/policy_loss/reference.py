"""policy_loss in plain torch, float64 throughout and differentiable: the truth every backend is tested against."""

import torch

from adapt_kernels.ops.policy_loss.arguments import PolicyRows
from adapt_kernels.ops.policy_loss.result import PolicyLoss
from adapt_kernels.ops.policy_loss.terms import policy_terms
from adapt_kernels.ops.token_logprobs import exact_logprobs


def policy_loss(rows: PolicyRows, grad_out: torch.Tensor | None, grad_scale: float) -> PolicyLoss:
    """See `adapt_kernels.policy_loss`; per-row results are [N]. Float64 throughout needs no `grad_scale`."""
    if grad_out is not None:
        raise ValueError("backend='reference' cannot write into grad_out; leave it out, or take backend='native'")
    logprobs, entropy = exact_logprobs(rows.tokens, entropy=True)
    assert entropy is not None
    return policy_loss_of(logprobs, entropy, rows)


def policy_loss_of(logprobs: torch.Tensor, entropy: torch.Tensor, rows: PolicyRows) -> PolicyLoss:
    """The loss of rows whose log-probs and entropies, [N] float64, are known and carry the gradient."""
    result = rows.tokens.result_dtype
    with torch.no_grad():
        # The ratio sees the log-prob that is returned, so that given back as `old_logprobs` it makes exactly 1.
        terms = policy_terms(logprobs.to(result).double(), entropy, rows)
    losses = _Terms.apply(logprobs, entropy, terms.loss, terms.logprob_slope, terms.entropy_slope)
    return PolicyLoss(
        losses.sum().to(result),
        logprobs.detach().to(result),
        entropy.detach().to(result),
        terms.ratio.to(result),
        terms.clipped,
    )


class _Terms(torch.autograd.Function):
    """The terms as a function of log-prob and entropy; a slope of 0 stops the gradient, whatever it would meet."""

    @staticmethod
    def forward(ctx, logprobs, entropy, losses, logprob_slope, entropy_slope):
        ctx.save_for_backward(logprob_slope, entropy_slope)
        return losses.clone()

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():
            raise RuntimeError("policy_loss has no second derivative: call backward without create_graph=True")
        logprob_slope, entropy_slope = ctx.saved_tensors
        return grad * logprob_slope, grad * entropy_slope, None, None, None
