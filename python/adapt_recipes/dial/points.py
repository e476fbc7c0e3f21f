"""The frontier of a served model: what each bias gives, without drawing modes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from adapt_recipes.dial.reply import Stopped
from adapt_recipes.dial.served import Served
from adapt_recipes.evaluation.compare import BIASES
from adapt_recipes.evaluation.frontier import Outcomes, frontier, measure_modes, spread_problems
from adapt_recipes.evaluation.generate import answer

PROBLEMS = 400
TOKEN_CAP = 120


@dataclass(frozen=True)
class Point:
    """A bias on the first mode: its share and mean new tokens; accuracy is None where answers cannot be graded."""

    bias: float
    p_fast: float
    tokens: float
    accuracy: float | None


def measure(served: Served, stop: threading.Event) -> Iterator[tuple[int, int, list[Point]]]:
    """Yield (done, of, points): points only at the end, unless `stop` was set.

    A model of the running-sum task answers 400 problems in each mode; any other its examples, at most 120 tokens each.
    Measured once; naming other modes forgets it.
    """
    if served.modes is None:
        raise ValueError("this model's modes are not known yet: name their openings first")
    if served.points:
        yield 1, 1, list(served.points)
        return
    for done, total, points in _measure_task(served) if served.graded else _measure_examples(served, stop):
        served.points = points
        yield done, total, points


def _measure_task(served: Served) -> Iterator[tuple[int, int, list[Point]]]:
    tasks = spread_problems("running_sum", PROBLEMS, seed=7)
    with served.lock:
        outcomes = measure_modes(served.model, served.tokenizer, served.modes, tasks)
    yield 1, 1, _points(outcomes, graded=True)


def _measure_examples(served: Served, stop: threading.Event) -> Iterator[tuple[int, int, list[Point]]]:
    prompts, names = served.examples, served.modes.names
    probs, tokens = (np.zeros((len(prompts), len(names))) for _ in range(2))
    total = len(prompts) * len(names)
    for done in range(total):
        row, mode = divmod(done, len(names))
        if stop.is_set():
            return
        yield done, total, []
        served.inputs(prompts[row], TOKEN_CAP)  # raises where the model cannot take it
        with served.lock:
            got = answer(
                served.model, served.tokenizer, [prompts[row]], TOKEN_CAP, mode=names[mode], do_sample=False,
                stopping_criteria=[Stopped(stop)],
            )  # fmt: skip
        probs[row], tokens[row, mode] = got.mode_probs[0].double().numpy(), got.tokens[0]
    if not stop.is_set():
        nothing = np.zeros_like(tokens)
        yield total, total, _points(Outcomes(names, probs, nothing, tokens, nothing[:, 0]), graded=False)


def _points(outcomes: Outcomes, graded: bool) -> list[Point]:
    rows = frontier(outcomes, BIASES)
    return [Point(row.bias, row.p_fast, row.mean_tokens, row.accuracy if graded else None) for row in rows]
