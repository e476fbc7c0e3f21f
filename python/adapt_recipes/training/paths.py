"""Trains the model that guesses and checks, and a `PrefixScorer` that reads from its KV which guesses are doomed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

import adapt_kernels as ak
from adapt_recipes.evaluation.paths import compare, guess_and_check, policies
from adapt_recipes.evaluation.report import path_table
from adapt_recipes.tasks import guess_check as task
from adapt_recipes.training import sft
from adapt_recipes.training.run_state import FOLDER, Clock, RunResult, torch_threads
from adapt_recipes.training.sft_config import Phase, SftConfig

UNSEEN_SEEDS, PROMPTS = (101, 102, 103), 200  # of what is reported
_SCORER = "scorer"  # the state of its fit, beside the model's


@dataclass(frozen=True)
class PathsConfig:
    """Everything that decides the trained weights; the defaults give the shipped checkpoint.

    seed: of model, scorer and every draw. steps, learning_rate, batch_size: of the model's training. hidden_size,
    layers, heads, intermediate_size: of the model. cut: new tokens of the scorer's prefixes, each of a fresh prompt: a
    scorer that sees a few hundred prompts again and again learns them by heart. rank: of its LoRA. scorer_steps,
    scorer_batch, scorer_rate: of its training. threads: of torch.
    """

    seed: int = 0
    steps: int = 800
    learning_rate: float = 3e-3
    batch_size: int = 128
    hidden_size: int = 64
    layers: int = 3
    heads: int = 4
    intermediate_size: int = 160
    cut: int = task.AT
    rank: int = 8
    scorer_steps: int = 350
    scorer_batch: int = 128
    scorer_rate: float = 3e-3
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "rank", "scorer_steps", "scorer_batch", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 1 <= self.cut <= task.TRACE_TOKENS:
            raise ValueError(f"cut must be new tokens of a trace, 1 to {task.TRACE_TOKENS}, got {self.cut}")

    @property
    def model(self) -> SftConfig:
        """Of the model's own training."""
        return SftConfig(
            task=task.NAME, seed=self.seed, phases=(Phase(self.steps, self.learning_rate, 0, self.batch_size),),
            hidden_size=self.hidden_size, layers=self.layers, heads=self.heads,
            intermediate_size=self.intermediate_size, threads=self.threads,
        )  # fmt: skip


def train(
    config: PathsConfig,
    out: str | Path,
    resume: bool = False,
    checkpoint_every: int = 100,
    on_step: Callable[[int, float], None] | None = None,
    progress: bool = False,
) -> tuple[RunResult, ak.PrefixScorer]:
    """Train by `config` and save model, tokenizer, modes, scorer and resumable state in the folder `out`.

    Arguments as `sft.train`; on_step is of the model's training, progress: a bar of the scorer's, which resumes
    from its beginning. Raises ValueError as `sft.train`.
    """
    result = sft.train(config.model, out, resume, checkpoint_every, on_step)
    clock = Clock({"wall_s": result.wall_s, "cpu_s": result.cpu_s})
    with torch_threads(config.threads):
        scorer = train_scorer(result.model, config, Path(out) / FOLDER / _SCORER, progress)
    scorer.save_pretrained(out)
    return RunResult(result.model, **clock.spent()), scorer


def train_scorer(
    model: Any, config: PathsConfig, folder: Path | None = None, progress: bool = False
) -> ak.PrefixScorer:
    """A scorer of prefixes of `config.cut` new tokens, from exact labels: each of a fresh prompt."""
    count = config.scorer_steps * config.scorer_batch
    traces = task.draw_traces(task.draw_prompts(count, (config.seed, 1, 1)), (config.seed, 1, 2))
    prefixes = torch.from_numpy(traces.ids[:, : task.PROMPT_TOKENS + config.cut])
    scorer = ak.PrefixScorer(model, rank=config.rank, dropout=0.0, seed=config.seed)
    scorer.fit(
        prefixes, traces.met.astype("float32"), epochs=1, batch_size=config.scorer_batch,
        learning_rate=config.scorer_rate, folder=folder, progress=progress,
    )  # fmt: skip
    return scorer


def report(
    model: Any, scorer: ak.PrefixScorer, config: PathsConfig, control: bool = True, progress: bool = False
) -> list[Table]:
    """What the scorer is worth on unseen prompts; control: and what another one is worth, trained right after
    the guess, before the model has computed what tells. model: patched."""
    calls = {seed: guess_and_check(PROMPTS, seed) for seed in UNSEEN_SEEDS}
    tables, rows = [], compare(model, calls, policies(scorer), config.cut)
    tables.append(path_table(rows, f"After {config.cut} tokens, {len(calls)} seeds of {PROMPTS} prompts"))
    if control:
        before = replace(config, cut=task.BEFORE)
        with torch_threads(config.threads):
            blind = train_scorer(model, before, progress=progress)
        rows = compare(model, calls, policies(blind), before.cut)
        tables.append(path_table(rows, "Control: right after the guess"))
    return tables
