"""What mode_sample returns."""

from typing import NamedTuple

import torch

FLAG_NAN = 1
FLAG_EMPTY = 2
FLAG_INF = 4


class ModeSample(NamedTuple):
    """One drawn token per row; see `mode_sample` for each field."""

    tokens: torch.Tensor
    modes: torch.Tensor
    logprobs: torch.Tensor
    raw_logprobs: torch.Tensor
    tempered_logprobs: torch.Tensor
    mode_probs: torch.Tensor
    kept: torch.Tensor
    flags: torch.Tensor

    def reshape(self, leading) -> "ModeSample":
        """The same rows under another leading shape."""
        fields = {name: value.reshape(leading) for name, value in self._asdict().items() if name != "mode_probs"}
        return ModeSample(**fields, mode_probs=self.mode_probs.reshape(*leading, self.mode_probs.shape[-1]))
