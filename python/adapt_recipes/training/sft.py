"""Supervised training that gives one small model two modes, at even odds, from random weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

import adapt_kernels as ak
from adapt_recipes.tasks.problem import EOS_TOKEN, FAST_TOKEN, PAD_TOKEN, SLOW_TOKEN
from adapt_recipes.tasks.tokenizer import BOS_TOKEN, build_tokenizer, token_id
from adapt_recipes.training.run_state import Clock, RunResult, check_output, load_run, save_run, torch_threads
from adapt_recipes.training.sft_config import Phase, SftConfig
from adapt_recipes.training.sft_tasks import SftTask, sft_task


def train(
    config: SftConfig,
    out: str | Path,
    resume: bool = False,
    checkpoint_every: int = 200,
    on_step: Callable[[int, float], None] | None = None,
    stop_after: int | None = None,
) -> RunResult:
    """Train by `config` and save model, tokenizer and resumable state in the folder `out`.

    resume: continue the run saved in `out` (same configuration), an error if there is none; without it, a folder with
    anything in it is one. on_step(finished_steps, loss) is called after every step. stop_after: leave after that
    many steps with the state saved but no final model, as an interruption would.
    """
    out = Path(out)
    check_output(out, resume, checkpoint_every)
    task = sft_task(config.task)
    with torch_threads(config.threads):
        model = build_model(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=config.betas, weight_decay=config.weight_decay)
        done, spent = load_run(out, config, model, optimizer)
        end = config.total_steps if stop_after is None else min(stop_after, config.total_steps)
        clock = Clock(spent)
        for step in range(done, end):
            loss = _train_step(config, task, model, optimizer, step)
            if (step + 1) % checkpoint_every == 0 or step + 1 == end:
                save_run(out, step + 1, config, model, optimizer, clock.spent())
            if on_step is not None:
                on_step(step + 1, loss)
        if end == config.total_steps:
            save_model(model, out, task)
    return RunResult(model.eval(), **clock.spent())


def build_model(config: SftConfig) -> LlamaForCausalLM:
    """The untrained model; leaves torch's global random state as it was."""
    shape = LlamaConfig(
        vocab_size=len(sft_task(config.task).vocabulary), hidden_size=config.hidden_size,
        num_hidden_layers=config.layers, num_attention_heads=config.heads, num_key_value_heads=config.heads,
        intermediate_size=config.intermediate_size, initializer_range=config.init_std, tie_word_embeddings=True,
        max_position_embeddings=64, pad_token_id=token_id(PAD_TOKEN), bos_token_id=token_id(BOS_TOKEN),
        eos_token_id=token_id(EOS_TOKEN), dtype="float32",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return LlamaForCausalLM(shape).float()


def save_model(model: LlamaForCausalLM, out: Path, task: SftTask) -> None:
    """Write model, generation settings, tokenizer and modes so that the Auto classes and `Modes` load the folder."""
    model.generation_config = GenerationConfig(
        pad_token_id=token_id(PAD_TOKEN), bos_token_id=token_id(BOS_TOKEN), eos_token_id=token_id(EOS_TOKEN),
        max_new_tokens=task.max_new_tokens, do_sample=False,
    )  # fmt: skip
    tokenizer = build_tokenizer(task.vocabulary)
    tokenizer.chat_template = task.chat_template
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    ak.Modes.from_tokenizer(tokenizer, fast=FAST_TOKEN, slow=SLOW_TOKEN).save_pretrained(out)


def learning_rate(config: SftConfig, step: int) -> tuple[Phase, float]:
    """The phase that step number `step` (from 0) belongs to, and its learning rate."""
    for phase in config.phases:
        if step < phase.steps:
            break
        step -= phase.steps
    else:
        raise ValueError(f"step must be below {config.total_steps}, the sum of all phases")
    if step < config.warmup_steps:
        return phase, phase.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, phase.steps - config.warmup_steps)
    return phase, phase.learning_rate * (config.floor + (1 - config.floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def _train_step(
    config: SftConfig, task: SftTask, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, step: int
) -> float:
    phase, rate = learning_rate(config, step)
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = _loss(model, *map(torch.from_numpy, task.draw_batch(phase, config.seed, step)))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    optimizer.step()
    return loss.item()


def _loss(model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean cross-entropy of the response tokens; right padding needs no mask in causal attention."""
    first = int(weights.any(dim=0).nonzero()[0])  # no prompt is shorter: only what follows needs logits
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[:, first - 1 :])
    targets, weights = ids[:, first:], weights[:, first:]
    each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return (each * weights.flatten()).sum() / weights.sum()
