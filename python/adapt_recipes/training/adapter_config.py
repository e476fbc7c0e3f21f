"""Settings of `adapt train sft` for an adapter on a pretrained model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AdapterConfig:
    """Everything that decides the trained adapter.

    base: "smollm2", or the folder of a model of its kind. start: an adapter on that base to go on from; None: a new
    one. task: a family of `tasks.words`. seed: of the adapter's initial weights and of every batch. steps, problems:
    optimiser steps, and problems in each; every problem is taught in both modes. level_weights: how often each level
    is drawn; fast needs most of the easy ones to fall as a slope. fast_weight, slow_weight, mode_weight: of the mean
    loss of the fast branch, of the slow one, and of the mode token at even odds. learning_rate: after `warmup_steps`,
    then on a line to 0. rank, alpha: of LoRA. passes: forward passes that a batch is split into by length, so that
    little of it is padding. threads: of torch.
    """

    base: str = "smollm2"
    start: str | None = None
    task: str = "words"
    seed: int = 0
    steps: int = 384
    problems: int = 8
    level_weights: tuple[float, ...] = (0.3, 0.25, 0.2, 0.15, 0.1)
    fast_weight: float = 0.5
    slow_weight: float = 0.5
    mode_weight: float = 0.1
    learning_rate: float = 1e-3
    warmup_steps: int = 10
    betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: float = 1.0
    rank: int = 8
    alpha: float = 16.0
    passes: int = 2
    threads: int = 2

    def __post_init__(self) -> None:
        for name in ("steps", "problems", "rank", "passes", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.passes > self.problems:
            raise ValueError(f"passes must be at most problems ({self.problems}), got {self.passes}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")

    @property
    def total_steps(self) -> int:
        return self.steps
