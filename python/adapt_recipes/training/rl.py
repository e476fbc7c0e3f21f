"""ADaPT training of a model that has two modes: it learns which problems deserve the slow one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import adapt_kernels as ak
from adapt_recipes import extras
from adapt_recipes.adapters import base_name, is_adapter, save_adapter
from adapt_recipes.models import (
    default_length,
    load_modes,
    load_tokenizer,
    load_trainable,
    model_folder,
    require_vocabulary,
)
from adapt_recipes.tasks.families import family_of, grade
from adapt_recipes.tasks.problem import Problem
from adapt_recipes.training.curve import Curve
from adapt_recipes.training.rl_config import RlConfig
from adapt_recipes.training.rl_trainer import METRICS, build_trainer, trainer_config
from adapt_recipes.training.run_state import (
    SCHEME,
    Clock,
    RunResult,
    check_output,
    load_run,
    load_tensors,
    progress,
    save_run,
    torch_threads,
)
from adapt_recipes.training.task_signals import text_of

PROMPT_SEED = 1_000_000  # plus the seed: prompts of another stream than any that is evaluated


def train(
    config: RlConfig,
    out: str | Path,
    resume: bool = False,
    checkpoint_every: int | None = None,
    on_step: Callable[[int, float], None] | None = None,
    stop_after: int | None = None,
) -> RunResult:
    """Train by `config` and save model, tokenizer, modes, curve.csv and resumable state in the folder `out`.

    Arguments as `sft.train`; checkpoint_every: None is 25, and 1 where the model is an adapter, which goes on as one.
    on_step gets the mean reward of each step's rollout. Raises ValueError for settings that cannot be honoured and
    RuntimeError when trl is missing, both before the model is loaded.
    """
    out = Path(out)
    if checkpoint_every is None:
        checkpoint_every = 1 if is_adapter(model_folder(config.model)) else 25
    check_output(out, resume, checkpoint_every)
    folder, tokenizer, modes, settings = checked(config, out)
    with torch_threads(config.threads), torch.random.fork_rng(devices=[]):
        model = load_trainable(folder).train()
        use_cache = model.config.use_cache
        trained = [value for value in model.parameters() if value.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=config.learning_rate)
        done, spent = progress(out, config)
        end = config.iterations if stop_after is None else min(stop_after, config.iterations)
        clock = Clock(spent)
        if done == 0:  # so that a run is resumable from its first second
            save_run(out, 0, config, model, optimizer, clock.spent())
        curve = Curve(out, tuple(METRICS), done)

        def after_step(step: int, metrics: dict[str, float]) -> None:
            curve.add(step, metrics)
            if step % checkpoint_every == 0 or step == end:
                save_run(out, step, config, model, optimizer, clock.spent(), trainer.scheme_state)
            if on_step is not None:
                on_step(step, metrics["reward"])

        if done < end:
            tasks = training_problems(config)[done * config.prompts :]
            rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: config.share_of_rate(done + step))
            parts = model, tokenizer, modes, settings, (optimizer, rate)
            with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of transformers, about TRL
                # Before the run's own weights: what it is held to, or measured against, is the start.
                trainer = build_trainer(*parts, tasks, correct, (done, end), after_step)
                load_run(out, config, model, optimizer)
                trainer.scheme_state.update(load_tensors(out, SCHEME))
                trainer.train()
        else:
            load_run(out, config, model, optimizer)
        if end == config.iterations:
            ak.unpatch(model)
            model.config.use_cache = use_cache  # TRL turns it off
            _save(model, tokenizer, modes, out, folder)
    return RunResult(model.eval(), **clock.spent())


def _save(model: Any, tokenizer: Any, modes: ak.Modes, out: Path, start: Path) -> None:
    if is_adapter(start):
        save_adapter(model, tokenizer, out, base_name(start))
        return
    for part in (model, tokenizer, modes):
        part.save_pretrained(out)


def checked(config: RlConfig, out: Path) -> tuple[Path, Any, ak.Modes, Any]:
    """Everything of a run that needs no model: its folder, tokenizer, modes and the trainer's settings."""
    extras.require("trl", "trl", "training by reinforcement")
    family_of(config.task).require()
    folder = model_folder(config.model)
    tokenizer = load_tokenizer(folder)
    modes = load_modes(folder, tokenizer, config.fast, config.slow)
    for name in modes.names:
        for token in modes[name].ids or ():
            if token >= len(tokenizer):
                raise ValueError(
                    f"mode {name!r} of {folder} opens with token {token}, but its tokenizer has only "
                    f"{len(tokenizer)} tokens"
                )
    require_vocabulary(tokenizer, [task.prompt for task in training_problems(config)[: config.prompts]], folder)
    return folder, tokenizer, modes, trainer_config(config, out, config.max_new_tokens or default_length(folder))


def training_problems(config: RlConfig) -> list[Problem]:
    """The problems of every step in order: `prompts` of them a step, uniform over the difficulties."""
    count = config.iterations * config.prompts
    family = family_of(config.task)
    return (family.training_problems or family.problems)(count, None, PROMPT_SEED + config.seed)


def correct(completions: Sequence[Any], problem: Sequence[dict[str, Any]], **_: Any) -> list[float]:
    """Reward function: 1 for a right answer, 0 for a wrong or malformed one."""
    pairs = zip(problem, completions, strict=True)
    return [float(grade(Problem(**given), text_of(completion))) for given, completion in pairs]
