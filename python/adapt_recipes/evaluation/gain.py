"""How sure the gain over a random mode choice is: both models answer the same problems, which are drawn again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adapt_recipes.evaluation.frontier import Outcomes, frontier, random_choice

RESAMPLES = 1000


@dataclass(frozen=True)
class GainRow:
    """Accuracy over that of a random mode choice of the base for the same tokens, at one bias: the gain, its standard
    error, and the bounds of its 95 % interval."""

    bias: float
    gain: float
    error: float
    low: float
    high: float


def gains(outcomes: Outcomes, base: Outcomes, biases: Sequence[float], seed: int = 0) -> list[GainRow]:
    """The gain at every bias with its bootstrap over problems, which move the curve and the line together.

    Raises ValueError where the two did not answer the same number of problems.
    """
    count = len(outcomes.difficulty)
    if len(base.difficulty) != count:
        raise ValueError(f"gains compare answers to the same problems: {count} and {len(base.difficulty)} were given")
    source = np.random.default_rng(seed)
    drawn = [source.integers(0, count, count) for _ in range(RESAMPLES)]
    found = np.array([_gains(taken(outcomes, rows), taken(base, rows), biases) for rows in drawn])
    low, high = np.quantile(found, (0.025, 0.975), axis=0)
    columns = _gains(outcomes, base, biases), found.std(axis=0), low, high
    return [GainRow(bias, *map(float, row)) for bias, row in zip(biases, zip(*columns, strict=True), strict=True)]


def taken(outcomes: Outcomes, rows: np.ndarray) -> Outcomes:
    """The outcomes of some problems, by index or by mask."""
    parts = outcomes.probs, outcomes.correct, outcomes.tokens, outcomes.difficulty
    return Outcomes(outcomes.modes, *(part[rows] for part in parts))


def _gains(outcomes: Outcomes, base: Outcomes, biases: Sequence[float]) -> list[float]:
    return [row.accuracy - random_choice(base, row.mean_tokens) for row in frontier(outcomes, biases)]
