"""Rows that teach both modes of a problem at once: its prompt, the fast branch and the slow branch.

Both branches continue the prompt, so they have the same positions, and neither sees the other: the prompt is computed
once. A mask [rows, 1, T, T] says so, and every target names the position that predicts it (the two mode tokens share
the prompt's last).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from adapt_recipes.tasks import words
from adapt_recipes.tasks.words import Worked
from adapt_recipes.training.adapter_config import AdapterConfig


class BranchRow(NamedTuple):
    """Token ids of a problem's prompt and of its two completions, mode token first and end of turn last."""

    prompt: list[int]
    fast: list[int]
    slow: list[int]

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.fast) + len(self.slow)


class Pass(NamedTuple):
    """One forward pass: ids, positions [B, T] int64; mask [B, 1, T, T] bool; at, target [N] int64, into the flattened
    rows; weight [N] float32, whose sum over all passes of a batch is the sum of the three branch weights."""

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    at: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor


def draw_passes(config: AdapterConfig, tokenizer: Any, step: int) -> list[Pass]:
    """The batch of `step`, split by length; a function of its arguments only, so a resumed run draws the same."""
    source = random.Random(f"adapt-words sft {config.seed} {step}")
    drawn = words.draw(source, config.level_weights, config.task)
    rows = sorted(encode_rows(tokenizer, [next(drawn) for _ in range(config.problems)]), key=lambda row: row.length)
    return [build_pass(part, rows, config, tokenizer.pad_token_id) for part in _parts(rows, config.passes)]


def encode_rows(tokenizer: Any, worked: Sequence[Worked]) -> list[BranchRow]:
    """Prompts in the model's chat format and both completions, ended by its end of turn."""
    end = tokenizer.eos_token
    rows = []
    for each in worked:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": each.problem.prompt}], add_generation_prompt=True, tokenize=False
        )
        texts = prompt, each.response(slow=False) + end, each.response(slow=True) + end
        rows.append(BranchRow(*tokenizer(list(texts), add_special_tokens=False)["input_ids"]))
    return rows


def build_pass(rows: Sequence[BranchRow], batch: Sequence[BranchRow], config: AdapterConfig, pad: int) -> Pass:
    """Some `rows` of a `batch` as tensors, padded on the right."""
    width = max(row.length for row in rows)
    ids = torch.full((len(rows), width), pad)
    positions = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), 1, width, width, dtype=torch.bool)
    targets: list[tuple[int, int, float]] = []
    shares = _shares(batch, config)
    for i, row in enumerate(rows):
        start, split, end = len(row.prompt), len(row.prompt) + len(row.fast), row.length
        ids[i, :end] = torch.tensor([*row.prompt, *row.fast, *row.slow])
        positions[i, :split] = torch.arange(split)
        positions[i, split:end] = torch.arange(start, start + len(row.slow))
        mask[i, 0] = torch.ones(width, width, dtype=torch.bool).tril()
        mask[i, 0, split:, start:split] = False
        for first, branch, share in ((start, row.fast, shares[0]), (split, row.slow, shares[1])):
            targets.append((i * width + start - 1, branch[0], shares[2]))
            targets += [(i * width + first + j, token, share) for j, token in enumerate(branch[1:])]
    at, target, weight = zip(*targets, strict=True)
    return Pass(ids, positions, mask, torch.tensor(at), torch.tensor(target), torch.tensor(weight))


def _shares(batch: Sequence[BranchRow], config: AdapterConfig) -> tuple[float, float, float]:
    """Weight of a token of the fast branch, of the slow one, and of a mode token."""
    fast, slow = (
        sum(len(branch) - 1 for branch in branches) for branches in zip(*(row[1:] for row in batch), strict=True)
    )
    return config.fast_weight / fast, config.slow_weight / slow, config.mode_weight / (2 * len(batch))


def _parts(rows: Sequence[BranchRow], count: int) -> Iterator[Sequence[BranchRow]]:
    each = -(-len(rows) // count)
    return (rows[start : start + each] for start in range(0, len(rows), each))
