"""What a scheme sees of a batch."""

from collections.abc import Mapping
from typing import NamedTuple

import torch


class Steps(NamedTuple):
    """Accuracies measured along the thoughts of a batch: K measurements, those of a row in their order.

    A row's last measurement is that of its real end. Where the others are measured, a later change is rewarded.
    """

    rows: torch.Tensor  # [K] int64, index into the B sequences
    positions: torch.Tensor  # [K] int64, token of the response at which a change after it is rewarded
    accuracies: torch.Tensor  # [K] float


class Rollouts(NamedTuple):
    """What a scheme sees of B sequences. Rows of one prompt share a number in `groups`; modes index the M modes."""

    outcome: torch.Tensor  # [B] float, the sequence's reward
    correct: torch.Tensor  # [B] bool, graded answer
    lengths: torch.Tensor  # [B] int64, tokens of the response, mode token included
    groups: torch.Tensor  # [B] int64
    modes: torch.Tensor  # [B] int64, 0 = fast, -1 = malformed: no valid tag
    num_modes: int
    progress: float = 0.0  # share of the training done
    reference_accuracy: torch.Tensor | None = None  # [B] float, of each prompt under the model before training
    signals: Mapping[str, torch.Tensor] | None = None  # [B] float each, by name: see `SIGNALS`
    step: int = 0  # optimiser steps done
    steps: Steps | None = None
    answer_start: torch.Tensor | None = None  # [B] int64, position of the answer's first token

    def signal(self, name: str) -> torch.Tensor:
        """[B] float64. Raises ValueError for one that is not there."""
        value = self.given(name)
        if value is None:
            raise ValueError(f"it needs {name}, {SIGNALS.get(name, 'a signal of each row')}: give it in signals")
        return value.double()

    def given(self, name: str) -> torch.Tensor | None:
        """The signal, or None."""
        if name == "reference_accuracy" and self.reference_accuracy is not None:
            return self.reference_accuracy
        return (self.signals or {}).get(name)

    @property
    def valid(self) -> torch.Tensor:
        """[B] bool: rows with a mode."""
        return self.modes >= 0


# What each signal is, in the words of errors and of `adapt schemes`.
SIGNALS = {
    "finished": "1 for a row that ended by itself, 0 for one that was cut",
    "entropy_think": "the mean token entropy of the thought",
    "entropy_answer": "the mean token entropy after the thought's close tag; 0 without one",
    "entropy_top": "the mean of the highest fifth of the row's token entropies",
    "reflections": "the number of reflection words",
    "triggers": "the number of trigger words that open a stretch of high entropy",
    "repetition": "the share of tokens in repeated n-grams",
    "flawed": "1 where a judge finds an erroneous step",
    "effort": "the share of the group's mean length that an answer may take",
    "conciseness": "a judge's score, .1 to 1",
    "difficulty": "the prompt's difficulty factor",
    "budget": "the tokens allowed to this row",
    "kl": "the row's mean KL divergence from the reference policy",
    "reference_accuracy": "the accuracy before training of each prompt",
}
