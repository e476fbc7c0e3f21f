"""How right the samples are that each score lets live, in really pruned calls of the same rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import adapt_kernels as ak
from adapt_recipes.evaluation.generate import encode
from adapt_recipes.tasks import guess_check
from adapt_recipes.tasks.families import grade
from adapt_recipes.tasks.problem import Problem

SAMPLES = 16
BASE = "random"  # what every other score is compared with


@dataclass(frozen=True)
class Sampled:
    """A call whose rows are judged: `arguments` of generate without paths and seed; `prompts` of them.

    right(new tokens [rows, T]) -> bool [rows]; oracle(the same, so far) -> which rows can still be right, or None where
    that cannot be told.
    """

    prompts: int
    arguments: dict[str, Any]
    right: Callable[[np.ndarray], np.ndarray]
    oracle: Callable[[np.ndarray], np.ndarray] | None = None


@dataclass(frozen=True)
class PathRow:
    """One score at one setting. accuracy: right rows among those that live, mean over prompts. over_random: its gain
    over a random choice, paired by prompt, and its 95 % interval. tokens: new tokens of all samples of a prompt, and
    positions computed for its scores; score_tokens: those alone."""

    policy: str
    at: int
    keep: int
    accuracy: float
    over_random: float
    over_low: float
    over_high: float
    tokens: float
    score_tokens: float


def policies(scorer: ak.PrefixScorer) -> dict[str, Any]:
    """What is compared on the guess-and-check task: `scores` of `compare`."""
    return {"random": "random", "confidence": "confidence", "STOP": scorer, "oracle": None}


def guess_and_check(prompts: int, seed: int) -> Sampled:
    """The task that `adapt train paths` teaches; equal prompts would share their samples, so each is drawn once."""
    ids = np.unique(guess_check.draw_prompts(prompts, (seed, 5)), axis=0)
    rows = ids.repeat(SAMPLES, axis=0)
    inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.ones(ids.shape, dtype=torch.long)}
    return Sampled(
        len(ids), {**inputs, "max_new_tokens": guess_check.TRACE_TOKENS}, lambda new: guess_check.right(rows, new),
        lambda new: guess_check.meets(rows, new[:, 0]),
    )  # fmt: skip


def of_problems(tokenizer: Any, tasks: Sequence[Problem], **arguments: Any) -> Sampled:
    """Problems that are graded by their final text."""
    by_prompt = list({task.prompt: task for task in tasks}.values())

    def right(new: np.ndarray) -> np.ndarray:
        texts = tokenizer.batch_decode(torch.from_numpy(new), skip_special_tokens=True)
        return np.array([grade(by_prompt[row // SAMPLES], text) for row, text in enumerate(texts)])

    inputs = encode(tokenizer, [task.prompt for task in by_prompt])
    return Sampled(len(by_prompt), {**inputs, **arguments}, right)


def compare(
    model: Any,
    calls: Mapping[int, Sampled],
    scores: Mapping[str, Any],
    at: int,
    keeps: Iterable[int] = (4,),
    **settings: Any,
) -> list[PathRow]:
    """One row per keep and score, on a patched model.

    calls: by the seed of their draws. scores: `Paths(score=)` by name, "random" among them; "oracle" with None asks the
    call. settings: more of `Paths`.
    """
    rows = []
    for keep in keeps:
        found = {}
        for name, score in scores.items():
            chosen = [ak.Paths(keep, at, score or _asking(call), **settings) for call in calls.values()]
            pairs = zip(calls.items(), chosen, strict=True)
            found[name] = [_prune(model, call, seed, paths) for (seed, call), paths in pairs]
        base = np.concatenate([shares for shares, *_ in found[BASE]])
        rows += [_row(name, at, keep, parts, base) for name, parts in found.items()]
    return rows


def _row(name: str, at: int, keep: int, parts: list, base: np.ndarray) -> PathRow:
    shares = np.concatenate([share for share, *_ in parts])
    gain = shares - base
    mean, half = float(gain.mean()), 1.96 * float(gain.std(ddof=1)) / math.sqrt(len(gain))
    new, scored = (sum(part[i] for part in parts) / len(shares) for i in (1, 2))
    return PathRow(name, at, keep, float(shares.mean()), mean, mean - half, mean + half, new + scored, scored)


def _asking(call: Sampled) -> Callable[[Any], np.ndarray]:
    """A score that knows which rows can still be right."""

    def score(view: Any) -> np.ndarray:
        new = np.zeros((call.prompts * SAMPLES, view.ids.shape[1]), dtype=np.int64)
        new[view.rows.cpu().numpy()] = view.ids.cpu().numpy()
        return call.oracle(new)[view.rows.cpu().numpy()].astype(float)

    return score


def _prune(model: Any, call: Sampled, seed: int, paths: ak.Paths) -> tuple[np.ndarray, int, int]:
    """(share of right rows among a prompt's living ones [prompts], new tokens, positions computed for scores)."""
    out = model.generate(
        **call.arguments, num_return_sequences=SAMPLES, do_sample=True, seed=seed, return_dict_in_generate=True,
        paths=paths,
    )  # fmt: skip
    alive = np.array([end != "pruned" for end in out.path_ends])
    right = call.right(out.sequences[:, call.arguments["input_ids"].shape[1] :].cpu().numpy()) & alive
    shares = right.reshape(-1, SAMPLES).sum(1) / alive.reshape(-1, SAMPLES).sum(1)
    return shares, int(out.lengths.sum()), out.stats.score_tokens
