"""The accuracy/cost frontier of a model: every problem answered once in each mode, then any bias by arithmetic.

With greedy answers only the mode is random. Its probabilities are known, so accuracy and tokens at a bias are exact
expectations over it: no noise from drawing modes, and two passes of generate for the whole curve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import adapt_kernels as ak
from adapt_recipes.evaluation.generate import answer
from adapt_recipes.tasks.families import family_of, grade, problems
from adapt_recipes.tasks.problem import Problem


@dataclass(frozen=True)
class Outcomes:
    """What N problems gave in each of M modes: `probs` (the model's own, no bias), `correct` and `tokens` [N, M]
    float64, and `difficulty` [N]. seconds: wall time of all answers of each mode, where it was measured."""

    modes: tuple[str, ...]
    probs: np.ndarray
    correct: np.ndarray
    tokens: np.ndarray
    difficulty: np.ndarray
    seconds: tuple[float, ...] = ()


@dataclass(frozen=True)
class FrontierRow:
    """One bias: share of problems that go to the first mode, accuracy and generated tokens per problem, expected over
    the draw of the mode."""

    bias: float
    p_fast: float
    accuracy: float
    mean_tokens: float


@dataclass(frozen=True)
class LevelRow:
    """One difficulty: number of problems, mean own P(first mode), accuracy and mean tokens of each forced mode."""

    difficulty: int
    problems: int
    p_fast: float
    accuracy: dict[str, float]
    tokens: dict[str, float]


def spread_problems(family: str, count: int, seed: int) -> list[Problem]:
    """At least `count` problems, equally many of every difficulty of the family."""
    levels = family_of(family).difficulties
    each = -(-count // len(levels)) if levels else count
    return [problem for level in levels or (None,) for problem in problems(each, level, seed, family)]


def measure_modes(
    model: Any,
    tokenizer: Any,
    modes: ak.Modes,
    tasks: Sequence[Problem],
    max_new_tokens: int | None = None,
    rows_per_call: int = 512,
    advance: Callable[[int], None] | None = None,
) -> Outcomes:
    """Answer every problem greedily in every mode on a patched model; `advance` is told how many each call answered."""
    probs, correct, tokens = (np.zeros((len(tasks), len(modes.names))) for _ in range(3))
    seconds = [0.0] * len(modes.names)
    for start in range(0, len(tasks), rows_per_call):
        chunk = tasks[start : start + rows_per_call]
        rows = slice(start, start + len(chunk))
        for m, name in enumerate(modes.names):
            got = answer(model, tokenizer, [task.prompt for task in chunk], max_new_tokens, mode=name, do_sample=False)
            probs[rows] = got.mode_probs.double().numpy()
            correct[rows, m] = [grade(task, text) for task, text in zip(chunk, got.texts, strict=True)]
            tokens[rows, m] = got.tokens
            seconds[m] += got.wall_s
            if advance is not None:
                advance(len(chunk))
    difficulty = np.array([task.difficulty for task in tasks])
    return Outcomes(modes.names, probs, correct, tokens, difficulty, tuple(seconds))


def frontier(outcomes: Outcomes, biases: Sequence[float]) -> list[FrontierRow]:
    """The expected row of every bias (added to the logit of the first mode)."""
    rows = []
    for bias in biases:
        biased = _biased(outcomes.probs, bias)
        rows.append(FrontierRow(
            bias, biased[:, 0].mean().item(), _expected(biased, outcomes.correct), _expected(biased, outcomes.tokens)
        ))  # fmt: skip
    return rows


def expected_seconds(outcomes: Outcomes, bias: float) -> float:
    """Wall time per problem at a bias: of the batches of each forced mode, by the share that goes there."""
    shares = _biased(outcomes.probs, bias).mean(axis=0)
    return float(shares @ np.array(outcomes.seconds)) / len(outcomes.difficulty)


def levels(outcomes: Outcomes) -> list[LevelRow]:
    """What each mode can do and how often the first is chosen, by difficulty."""
    rows = []
    for level in np.unique(outcomes.difficulty).tolist():
        at = outcomes.difficulty == level
        accuracy, tokens = outcomes.correct[at].mean(axis=0), outcomes.tokens[at].mean(axis=0)
        rows.append(LevelRow(
            level, int(at.sum()), outcomes.probs[at, 0].mean().item(),
            dict(zip(outcomes.modes, accuracy.tolist(), strict=True)),
            dict(zip(outcomes.modes, tokens.tolist(), strict=True)),
        ))  # fmt: skip
    return rows


def random_choice(outcomes: Outcomes, mean_tokens: float) -> float:
    """Accuracy when the first mode is drawn at one probability for every problem, so that `mean_tokens` are spent.

    The straight line between the forced first mode and the others at their own proportions, held constant past its
    ends. A model that chooses by the problem lies above it.
    """
    accuracy, tokens = (values.mean(axis=0) for values in (outcomes.correct, outcomes.tokens))
    rest = outcomes.probs[:, 1:].mean(axis=0)
    rest = rest / rest.sum() if rest.sum() > 0 else np.full(len(rest), 1 / len(rest))
    ends = sorted([(tokens[0], accuracy[0]), (tokens[1:] @ rest, accuracy[1:] @ rest)])
    return float(np.interp(mean_tokens, *zip(*ends, strict=True)))


def area_over_random_choice(outcomes: Outcomes, base: Outcomes, biases: Sequence[float]) -> float:
    """Mean accuracy gained over the random choice of `base`, over all budgets between its two forced modes.

    The curve runs through the biases and both forced ends of `outcomes`; between neighbouring points it is straight,
    which is what mixing the two settings at random gives. Two modes only.
    """
    points = [(row.mean_tokens, row.accuracy) for row in frontier(outcomes, biases)]
    points += zip(outcomes.tokens.mean(axis=0), outcomes.correct.mean(axis=0), strict=True)
    ends = base.tokens.mean(axis=0)
    budgets = np.linspace(ends.min(), ends.max(), 201)
    reached = np.interp(budgets, *zip(*sorted(points), strict=True))
    gained = reached - [random_choice(base, budget) for budget in budgets]
    return float(np.trapezoid(gained, budgets) / (ends.max() - ends.min()))


def _biased(probs: np.ndarray, bias: float) -> np.ndarray:
    with np.errstate(divide="ignore"):
        logits = np.log(probs)
    logits[:, 0] += bias
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def _expected(weights: np.ndarray, values: np.ndarray) -> float:
    return (weights * values).sum(axis=1).mean().item()
