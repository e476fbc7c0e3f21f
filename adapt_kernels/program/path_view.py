"""What a score function of `Paths` sees."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class PathView:
    """The unfinished rows of a call [n], in Hugging Face's order, when they are judged.

    rows int64 [n]: which rows of the call they are. prompt_of_row int64 [n]: equal for rows of one prompt. ids int64
    [n, T]: their new tokens. lengths int64 [n]: how many those are. logprob_sums, confidence_sums float64 [n]: of all
    new tokens, of the model's own distribution at T = 1; None for a score that has reads_tokens = False. last_hidden
    [n, h]: what the last token's logits were computed from; None where the model does not give it to a module.
    """

    rows: torch.Tensor
    prompt_of_row: torch.Tensor
    ids: torch.Tensor
    lengths: torch.Tensor
    logprob_sums: torch.Tensor | None
    confidence_sums: torch.Tensor | None
    last_hidden: torch.Tensor | None
    forward: Callable = field(repr=False)

    def append(self, embeds: torch.Tensor, adapter: AbstractContextManager | None = None) -> torch.Tensor:
        """Last hidden states [n, q, h] at positions appended to the rows, which are forgotten afterwards.

        The rows' last tokens are computed first, by the model as it is, then one position after the other.

        Args:
            embeds: [q, h], the same for all rows, or [n, q, h]: input embeddings.
            adapter: a context in which the appended positions are computed, None = the model as it is.

        Raises ValueError for another shape, or where the call's cache cannot be put back, with the reason.
        """
        if embeds.ndim == 2:
            embeds = embeds.expand(len(self.rows), *embeds.shape)
        if embeds.ndim != 3 or len(embeds) != len(self.rows) or not embeds.shape[1]:
            raise ValueError(
                f"append: embeds must be [q, h] or [{len(self.rows)} rows, q, h] with q >= 1; got {tuple(embeds.shape)}"
            )
        return self.forward(embeds, nullcontext() if adapter is None else adapter)
