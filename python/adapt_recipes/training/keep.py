"""Trains the model that remembers the marked, and a `TokenScorer` of what its answers will look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.table import Table

import adapt_kernels as ak
from adapt_recipes.evaluation.keep import measure
from adapt_recipes.evaluation.report import keep_table
from adapt_recipes.tasks import recall as task
from adapt_recipes.training import sft
from adapt_recipes.training.run_state import FOLDER, Clock, RunResult, torch_threads
from adapt_recipes.training.sft_config import Phase, SftConfig

UNSEEN_SEEDS, ROUNDS, PEAK = (101, 102, 103), 3, 24  # of what is reported
_HEAD = "head"  # the state of its fit, beside the model's


@dataclass(frozen=True)
class KeepConfig:
    """Everything that decides the trained weights; the defaults give the shipped checkpoint.

    seed: of model, head and every draw. marked: False: the thought does not say which letters were asked for (control).
    steps, learning_rate, batch_size: of the model's training. hidden_size, layers, heads, intermediate_size: of the
    model. head_samples, head_epochs, head_batch, head_rate: of the head's training. threads: of torch.
    """

    seed: int = 0
    marked: bool = True
    steps: int = 600
    learning_rate: float = 3e-3
    batch_size: int = 64
    hidden_size: int = 64
    layers: int = 3
    heads: int = 4
    intermediate_size: int = 160
    head_samples: int = 600
    head_epochs: int = 40
    head_batch: int = 50
    head_rate: float = 2e-3
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "head_samples", "head_epochs", "head_batch", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def model(self) -> SftConfig:
        """Of the model's own training."""
        return SftConfig(
            task=task.NAME if self.marked else f"{task.NAME}_unmarked", seed=self.seed,
            phases=(Phase(self.steps, self.learning_rate, 0, self.batch_size),), hidden_size=self.hidden_size,
            layers=self.layers, heads=self.heads, intermediate_size=self.intermediate_size, init_std=0.1,
            threads=self.threads,
        )  # fmt: skip


def train(
    config: KeepConfig,
    out: str | Path,
    resume: bool = False,
    checkpoint_every: int = 100,
    on_step: Callable[[int, float], None] | None = None,
    progress: bool = False,
) -> tuple[RunResult, ak.TokenScorer]:
    """Train by `config` and save model, tokenizer, modes, head and resumable state in the folder `out`.

    Arguments as `sft.train`; on_step is of the model's training, progress: bars of the head's. Raises ValueError as
    `sft.train`.
    """
    result = sft.train(config.model, out, resume, checkpoint_every, on_step)
    clock = Clock({"wall_s": result.wall_s, "cpu_s": result.cpu_s})
    with torch_threads(config.threads):
        head = train_head(result.model, config, Path(out) / FOLDER / _HEAD, progress)
    head.save_pretrained(out)
    return RunResult(result.model, **clock.spent()), head


def train_head(model: Any, config: KeepConfig, folder: Path | None = None, progress: bool = False) -> ak.TokenScorer:
    """A head that learns from right samples what their answers attend to."""
    samples = task.draw_samples(config.head_samples, (config.seed, 1, 3), config.marked)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        head = ak.TokenScorer(model)
    head.fit(
        model, [task.thought_of(ids) for ids in samples], epochs=config.head_epochs, batch_size=config.head_batch,
        lr=config.head_rate, seed=config.seed, checkpoint=folder, progress=progress,
    )  # fmt: skip
    return head


def report(model: Any, head: ak.TokenScorer) -> Table:
    """What the head is worth on unseen prompts, at half the positions of the full cache. model: patched."""
    rows = [row for seed in UNSEEN_SEEDS for row in measure(model, head, (PEAK,), ROUNDS, seed)]
    means = [
        replace(row, accuracy=mean(each.accuracy for each in rows if each.policy == row.policy))
        for row in rows[: len(rows) // len(UNSEEN_SEEDS)]
    ]
    return keep_table(
        means, f"Accuracy by KV positions held at most, {len(UNSEEN_SEEDS)} seeds, {ROUNDS} x 56 rows each"
    )
