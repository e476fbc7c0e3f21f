"""Measure a patched model by generating at a mode setting: accuracy and tokens as the setting moves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

import adapt_kernels as ak
from adapt_recipes.evaluation.generate import Generated, count_tokens
from adapt_recipes.tasks.families import grade
from adapt_recipes.tasks.problem import Problem

ROWS_PER_CALL = 1024


@dataclass(frozen=True)
class SweepRow:
    """One setting measured over a set of problems.

    setting: name of the generate argument, value: its value. p_fast: share of rows that went to the first mode.
    p_fast_expected: the share its probabilities promise, from the model's own ones and the setting. accuracy: share of
    right answers. mean_tokens: generated tokens per row, mode token and EOS included. wall_s: time in generate.
    """

    setting: str
    value: float
    p_fast: float
    p_fast_expected: float
    accuracy: float
    mean_tokens: float
    wall_s: float


def generate_rows(model: Any, tokenizer: Any, prompts: Sequence[str], *, seed: int = 0, **arguments: Any) -> Generated:
    """Run `model.generate` (patched) over `prompts` in batches and gather the rows.

    The batches do not depend on the setting, so equal seeds give equal random numbers to a row at every setting.
    """
    texts, tokens, modes, mode_probs, wall_s = [], [], [], [], 0.0
    for start in range(0, len(prompts), ROWS_PER_CALL):
        inputs = tokenizer(list(prompts[start : start + ROWS_PER_CALL]), return_tensors="pt", padding=True)
        inputs = inputs.to(model.device)
        began = time.perf_counter()
        out = model.generate(**inputs, seed=ak.row_seed(seed, start), return_dict_in_generate=True, **arguments)
        wall_s += time.perf_counter() - began
        answers = out.sequences[:, inputs["input_ids"].shape[1] :]
        texts += tokenizer.batch_decode(answers, skip_special_tokens=True)
        tokens += count_tokens(answers, model.generation_config.eos_token_id)
        modes.append(out.modes.cpu())
        mode_probs.append(out.mode_probs.cpu())
    return Generated(texts, tokens, torch.cat(modes), torch.cat(mode_probs), wall_s)


def measure(model: Any, tokenizer: Any, tasks: Sequence[Problem], setting: str, value: float, seed: int) -> SweepRow:
    """Measure one value of `mode_bias` or `fast_prob` on a patched model.

    The mode is drawn at the model's biased probability; top_k=1 then makes the answer greedy (it does not act on the
    mode token), so rows differ between settings only by their mode.
    """
    got = generate_rows(
        model, tokenizer, [task.prompt for task in tasks], seed=seed, do_sample=True, top_k=1, **{setting: value}
    )
    correct = sum(grade(task, text) for task, text in zip(tasks, got.texts, strict=True))
    if setting == "mode_bias":
        biased = got.mode_probs.double().log()
        biased[:, 0] += value
        expected = biased.softmax(dim=1)[:, 0].mean().item()
    else:
        expected = value
    return SweepRow(
        setting=setting,
        value=value,
        p_fast=(got.modes == 0).double().mean().item(),
        p_fast_expected=expected,
        accuracy=correct / len(tasks),
        mean_tokens=sum(got.tokens) / len(tasks),
        wall_s=got.wall_s,
    )
