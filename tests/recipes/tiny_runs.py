"""Both trainings at a size of seconds, and what is left of a run."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from adapt_recipes.training import rl, sft
from adapt_recipes.training.rl_config import RlConfig
from adapt_recipes.training.run_state import RunResult
from adapt_recipes.training.sft_config import PHASE_A, PHASE_B, SftConfig


@dataclass(frozen=True)
class Recipe:
    train: Callable[..., RunResult]
    config: Any
    steps: int
    has_curve: bool


@dataclass(frozen=True)
class Run:
    """A finished run in `out`; `reported`: the steps and values that on_step got."""

    recipe: Recipe
    out: Path
    reported: list[tuple[int, float]]


SFT = Recipe(
    sft.train,
    SftConfig(
        seed=3,
        phases=(
            replace(PHASE_A, steps=4, fast_rows=4, slow_rows=4),
            replace(PHASE_B, steps=4, fast_rows=6, slow_rows=2),
        ),
        hidden_size=16,
        layers=1,
        intermediate_size=32,
        warmup_steps=2,
    ),
    steps=8,
    has_curve=False,
)
RL = Recipe(rl.train, RlConfig(iterations=6, prompts=4, samples=4, seed=5, decay_steps=3), steps=6, has_curve=True)


def run(recipe: Recipe, out: Path, **arguments: Any) -> Run:
    reported = []
    recipe.train(recipe.config, out, on_step=lambda step, value: reported.append((step, value)), **arguments)
    return Run(recipe, out, reported)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def interrupted_and_resumed(train: Callable[..., Any], config: Any, out: Path) -> None:
    """A run of at least four steps that is broken off after the third, saved after the second, and gone on with."""

    def interrupt(step, loss):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, out, checkpoint_every=2, on_step=interrupt)
    train(config, out, resume=True)
