"""What a KV budget costs in accuracy on the task `recall`, by the score that chooses what stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

import adapt_kernels as ak
from adapt_recipes.tasks import recall as task

KEEP, WINDOW = 0.6, 8
FULL = task.PROMPT_TOKENS + task.NEW_TOKENS - 1  # positions: the last token's KV is never written
NAMED = {"snap": "snap", "r_kv": "r_kv", "random": "random", "window": "recent"}
POLICIES = ("full", "oracle", "DynTS", *NAMED)


@dataclass(frozen=True)
class KeepRow:
    """One score at one budget. peak: positions that a row held at most, its prompt included. accuracy: share of the
    answers' digits that are those of the rows' own thoughts. kv_bytes: what the call's caches held at most."""

    policy: str
    peak: int
    accuracy: float
    kv_bytes: int


class Oracle:
    """Keeps the tokens that the answer needs, and the marks after them. It knows them from the call's stream, so it is
    given as the call's streamer too. Only of calls whose slots are their rows: prompts that differ, no early ends."""

    def __init__(self) -> None:
        self._prompts, self._previous, self._latest = None, None, None

    def put(self, value: torch.Tensor) -> None:
        """The prompts, then each step's tokens [rows]."""
        if self._prompts is None:
            self._prompts, self._latest = value, value[:, -1]
        else:
            self._previous, self._latest = self._latest, value

    def end(self) -> None:
        """Nothing is held back."""

    def check_model(self, model: Any) -> None:
        """It has learnt nothing from one."""

    def token_scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [rows] of the tokens that were streamed last."""
        if len(hidden) != len(self._latest):
            raise RuntimeError(f"Oracle: {len(self._latest)} rows were streamed, and {len(hidden)} are left")
        pairs = torch.stack([self._previous, self._latest], 1)
        return torch.from_numpy(task.wanted(self._prompts.numpy(), pairs.numpy()).any(1)).float()


def measure(
    model: Any, head: ak.TokenScorer, peaks: Sequence[int] = (24,), rounds: int = 4, seed: int = 7
) -> list[KeepRow]:
    """One row per policy and peak on a patched model, the full cache once. In each round every question is asked, of
    other draws; these are the same for every policy."""
    found = [_measure(model, "full", None, FULL, rounds, seed)]
    for peak in peaks:
        # An oracle for each call: it remembers its stream.
        scores = {
            "oracle": Oracle,
            "DynTS": lambda: head,
            **{name: partial(str, score) for name, score in NAMED.items()},
        }
        found += [_measure(model, name, score, peak, rounds, seed) for name, score in scores.items()]
    return found


def _measure(model: Any, name: str, score: Callable[[], Any] | None, peak: int, rounds: int, seed: int) -> KeepRow:
    ids, shares = torch.from_numpy(task.questions()), []
    for number in range(rounds):
        more: dict[str, Any] = {}
        if score is not None:
            chosen = score()
            more["kv_keep"] = ak.KeepKV(peak - 1, KEEP, WINDOW, chosen, count="all")
            more |= {"streamer": chosen} if isinstance(chosen, Oracle) else {}
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, seed=ak.row_seed(seed, number),
            max_new_tokens=task.NEW_TOKENS, eos_token_id=None, return_dict_in_generate=True,
            program=ak.Program.from_dict(task.form()), **more,
        )  # fmt: skip
        shares.append(task.digits_right(out.sequences.numpy()).mean())
    held = FULL if score is None else out.stats.kv_held_peak
    return KeepRow(name, held, float(np.mean(shares)), out.stats.kv_bytes_peak)
