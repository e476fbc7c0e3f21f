"""Settings of `adapt train rl`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from adapt_recipes.tasks.families import family_of


@dataclass(frozen=True)
class RlConfig:
    """Everything that decides the trained weights; the defaults give the shipped checkpoint.

    model: a shipped checkpoint ("sft") or adapter ("smollm2-sft"), or a local folder of either, with modes. fast, slow:
    texts that open its modes; None: its modes.json. task: a task family that draws problems. seed: of prompts and
    rollouts.
    iterations: optimiser steps, each on its own rollout of `prompts` problems with `samples` answers each.
    decay_steps: the last steps, in which the learning rate falls on a straight line, from its whole in the first of
    them to 0 after the last; None: it is the same throughout.
    scheme: how the mode token and the response are credited; `adapt schemes` lists them. rollout: "balanced" forces
    both modes equally often, "auto" lets the model choose.
    gamma: accuracy asked of the fast mode; higher favours slow. mode_weight: of the mode token's loss.
    mode_margin_coef: of the penalty on (logit_slow - logit_fast)^2, without which forced modes drive the two apart
    until no bias moves them; None: the scheme's own.
    kl: coefficient of the KL term that holds the answers to those of the start; None: 2 for "separate", else 0.
    max_new_tokens: None: the model's own. passes: equal parts that a rollout is split into for its gradient, which
    takes their memory one after the other. threads: of torch.
    trainer: any other field of `adapt_kernels.trl.ADaPTConfig`, such as {length_penalty: 1.0}.
    """

    model: str = "sft"
    fast: str | None = None
    slow: str | None = None
    task: str = "running_sum"
    seed: int = 0
    iterations: int = 150
    prompts: int = 32
    samples: int = 8
    learning_rate: float = 1e-4
    decay_steps: int | None = None
    scheme: str = "separate"
    rollout: str = "balanced"
    gamma: float = 0.5
    mode_weight: float = 3.0
    mode_margin_coef: float | None = 0.15
    kl: float | None = None
    max_new_tokens: int | None = None
    passes: int = 1
    threads: int = 1
    trainer: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in (("iterations", 1), ("prompts", 1), ("samples", 2), ("passes", 1), ("threads", 1)):
            if getattr(self, name) < least:
                why = ": one answer has nothing to be compared with" if name == "samples" else ""
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}{why}")
        if self.prompts * self.samples % self.passes:
            raise ValueError(
                f"passes must divide the {self.prompts * self.samples} answers of a step (prompts x samples), "
                f"got {self.passes}"
            )
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if self.decay_steps is not None and not 1 <= self.decay_steps <= self.iterations:
            raise ValueError(
                f"decay_steps must be from 1 to the {self.iterations} iterations, or null, got {self.decay_steps}"
            )
        if self.kl is not None and self.kl < 0:
            raise ValueError(f"kl must be at least 0, got {self.kl}")
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma is an accuracy, from 0 to 1, got {self.gamma}")
        if not family_of(self.task).difficulties:
            raise ValueError(f"the task family {self.task} draws no problems to train on")

    def share_of_rate(self, step: int) -> float:
        """Of step number `step` (from 0), its learning rate as a share of `learning_rate`."""
        return min(1.0, (self.iterations - step) / (self.decay_steps or 1))
