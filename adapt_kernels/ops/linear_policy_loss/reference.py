"""linear_policy_loss with all logits at once, differentiable: the truth the chunked form is tested against."""

import torch

from adapt_kernels.ops.lm_head import LmHead
from adapt_kernels.ops.policy_loss import PolicyLoss, PolicyRows, reference_loss


def linear_policy_loss(
    hidden: torch.Tensor, head: LmHead, rows: PolicyRows, chunk_rows: int | None, grad_scale: float
) -> PolicyLoss:
    """See `adapt_kernels.linear_policy_loss`; per-row results are [N]. Needs neither chunks nor `grad_scale`."""
    logits = hidden.double() @ head.weight.double().t()
    if head.bias is not None:
        logits = logits + head.bias.double()
    logits = logits * head.logit_scale
    if head.softcap:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    out = reference_loss(rows._replace(tokens=rows.tokens._replace(logits=logits.unsqueeze(1))), None, grad_scale)
    if hidden.dtype == torch.float64:
        return out
    return PolicyLoss(*(field.float() if field.is_floating_point() else field for field in out))
