"""What policy_loss returns."""

from typing import NamedTuple

import torch


class PolicyLoss(NamedTuple):
    """`loss` is a scalar and carries the gradient of the logits; the others have the leading shape of the logits."""

    loss: torch.Tensor
    logprobs: torch.Tensor
    entropy: torch.Tensor
    ratio: torch.Tensor
    clipped: torch.Tensor

    def reshape(self, shape) -> "PolicyLoss":
        """The same with every per-row field in `shape`."""
        return PolicyLoss(self.loss, *(field.reshape(shape) for field in self[1:]))
