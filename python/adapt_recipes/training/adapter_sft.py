"""Supervised training that gives a pretrained language model two modes, at even odds, by a LoRA adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from adapt_recipes import extras
from adapt_recipes.adapters import (
    add_mode_tokens,
    base_folder,
    base_of,
    grow_embedding,
    is_adapter,
    new_adapter,
    save_adapter,
)
from adapt_recipes.models import load_model, load_tokenizer, load_trainable, model_folder
from adapt_recipes.tasks import words
from adapt_recipes.training.adapter_config import AdapterConfig
from adapt_recipes.training.branch_rows import Pass, draw_passes
from adapt_recipes.training.curve import Curve
from adapt_recipes.training.run_state import Clock, RunResult, check_output, load_run, save_run, torch_threads


def train(
    config: AdapterConfig,
    out: str | Path,
    resume: bool = False,
    checkpoint_every: int = 16,
    on_step: Callable[[int, float], None] | None = None,
    stop_after: int | None = None,
) -> RunResult:
    """Train by `config` and save the adapter, its modes, curve.csv and resumable state in the folder `out`.

    Arguments as `sft.train`. Raises RuntimeError when peft or the base model is missing, ValueError for a task
    without worked solutions.
    """
    out = Path(out)
    check_output(out, resume, checkpoint_every)
    words.kinds_of(config.task)
    extras.require("peft", "lora", "training an adapter")
    folder = base_folder(config.base)
    tokenizer = add_mode_tokens(load_tokenizer(folder))
    with torch_threads(config.threads):
        model = _adapted(config, folder, tokenizer).train()
        trained = [value for value in model.parameters() if value.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=0.0, betas=config.betas, weight_decay=0.0)
        done, spent = load_run(out, config, model, optimizer)
        end = config.steps if stop_after is None else min(stop_after, config.steps)
        clock = Clock(spent)
        curve = Curve(out, ("loss",), done)
        for step in range(done, end):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step)
            loss = _train_step(config, tokenizer, model, optimizer, step)
            curve.add(step + 1, {"loss": loss})
            if (step + 1) % checkpoint_every == 0 or step + 1 == end:
                save_run(out, step + 1, config, model, optimizer, clock.spent())
            if on_step is not None:
                on_step(step + 1, loss)
        if end == config.steps:
            save_adapter(model, tokenizer, out, config.base)
    return RunResult(model.eval(), **clock.spent())


def _adapted(config: AdapterConfig, folder: Path, tokenizer: Any) -> Any:
    if config.start is None:
        model = grow_embedding(load_model(folder), tokenizer)
        return new_adapter(model, tokenizer, config.rank, config.alpha, config.seed)
    start = model_folder(config.start)
    if not is_adapter(start) or base_of(start) != folder:
        raise ValueError(f"start must be an adapter on the base {config.base}, got {config.start}")
    model = load_trainable(start)
    settings = model.peft_config["default"]
    if (settings.r, settings.lora_alpha) != (config.rank, config.alpha):
        raise ValueError(
            f"start has rank {settings.r} and alpha {settings.lora_alpha}: set them so, got {config.rank} and "
            f"{config.alpha}"
        )
    return model


def learning_rate(config: AdapterConfig, step: int) -> float:
    """Of step number `step` (from 0): a short linear warm-up, then a line down to 0 after the last step."""
    rising = (step + 1) / max(1, config.warmup_steps)
    return config.learning_rate * min(rising, 1 - step / config.steps)


def _train_step(
    config: AdapterConfig, tokenizer: Any, model: Any, optimizer: torch.optim.Optimizer, step: int
) -> float:
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for each in draw_passes(config, tokenizer, step):
        loss = branch_loss(model.get_base_model(), each)
        loss.backward()
        total += loss.item()
    trained = [value for value in model.parameters() if value.requires_grad]
    torch.nn.utils.clip_grad_norm_(trained, config.clip_norm)
    optimizer.step()
    return total


def branch_loss(model: Any, each: Pass) -> torch.Tensor:
    """Weighted cross-entropy of the branches; logits are computed only where a target is."""
    hidden = model.model(
        input_ids=each.ids, attention_mask=each.mask, position_ids=each.positions, use_cache=False
    ).last_hidden_state
    logits = model.lm_head(hidden.flatten(0, 1)[each.at])
    losses = torch.nn.functional.cross_entropy(logits, each.target, reduction="none")
    return (losses * each.weight).sum()
