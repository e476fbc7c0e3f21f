"""The frontier's arithmetic, by hand and against generation."""

import numpy as np
import pytest

import adapt_kernels as ak
import adapt_recipes as ar
from adapt_recipes.evaluation import measure
from adapt_recipes.evaluation.frontier import (
    Outcomes,
    area_over_random_choice,
    frontier,
    levels,
    measure_modes,
    random_choice,
    spread_problems,
)
from adapt_recipes.models import load

BIASES = (-8.0, -2.0, 0.0, 1.5, 8.0)


def table(probs, correct, tokens, difficulty=None):
    count = len(probs)
    return Outcomes(("fast", "slow"), *(np.array(x, float) for x in (probs, correct, tokens)),
                    np.arange(count) if difficulty is None else np.array(difficulty))  # fmt: skip


# Fast solves the first problem only and costs 3; slow solves both and costs 5 and 9.
PERFECT = table([[1, 0], [0, 1]], [[1, 1], [0, 1]], [[3, 5], [3, 9]])
BLIND = table([[0.5, 0.5]] * 2, PERFECT.correct, PERFECT.tokens)


def test_expectations_by_hand():
    (row,) = frontier(BLIND, [0.0])
    assert (row.p_fast, row.accuracy, row.mean_tokens) == (0.5, 0.75, 5.0)
    (row,) = frontier(BLIND, [np.log(3)])  # odds 3 to 1
    assert row.p_fast == pytest.approx(0.75)
    assert row.accuracy == pytest.approx((1 + 0.25) / 2)
    for bias in BIASES:  # certain modes are moved by no bias
        (row,) = frontier(PERFECT, [bias])
        assert (row.p_fast, row.accuracy, row.mean_tokens) == (0.5, 1.0, 6.0)


def test_random_choice_is_the_line_between_the_forced_modes():
    assert [random_choice(BLIND, tokens) for tokens in (3, 5, 7)] == [0.5, 0.75, 1.0]
    assert [random_choice(BLIND, tokens) for tokens in (0, 99)] == [0.5, 1.0]
    for row in frontier(BLIND, BIASES):
        assert row.accuracy == pytest.approx(random_choice(BLIND, row.mean_tokens))


def test_area_by_hand():
    assert area_over_random_choice(BLIND, BLIND, BIASES) == pytest.approx(0, abs=1e-12)
    # A triangle over the line from (3, .5) to (7, 1): at 6 tokens 1.0 instead of 7/8.
    assert area_over_random_choice(PERFECT, BLIND, [0.0]) == pytest.approx(0.125 / 2, rel=1e-3)


def test_levels_by_hand():
    first, second = levels(table(BLIND.probs, BLIND.correct, BLIND.tokens, [4, 2]))
    assert (first.difficulty, first.problems, first.p_fast) == (2, 1, 0.5)
    assert first.accuracy == {"fast": 0.0, "slow": 1.0} and second.accuracy == {"fast": 1.0, "slow": 1.0}
    assert first.tokens == {"fast": 3.0, "slow": 9.0}


def test_problems_are_spread_evenly():
    tasks = spread_problems("running_sum", 20, seed=3)
    assert [task.difficulty for task in tasks] == [k for k in range(1, 9) for _ in range(3)]
    assert tasks[:3] == ar.problems(3, difficulty=1, seed=3)


def test_expectation_agrees_with_generating_at_the_bias():
    """The frontier by arithmetic is the one that biased, sampled generation shows, within its noise."""
    folder = ar.checkpoint_path("rl")
    model, tokenizer = load(folder)
    modes = ak.Modes.from_pretrained(folder)
    ak.patch(model, modes)
    tasks = spread_problems("running_sum", 1200, seed=21)
    outcomes = measure_modes(model, tokenizer, modes, tasks, rows_per_call=500)
    for bias in (-2.0, 0.0, 3.0):
        (expected,) = frontier(outcomes, [bias])
        drawn = measure.measure(model, tokenizer, tasks, "mode_bias", bias, seed=21)
        spread = 4 * 0.5 / len(tasks) ** 0.5  # four standard errors of a share, at the most
        assert drawn.p_fast == pytest.approx(expected.p_fast, abs=spread)
        assert drawn.accuracy == pytest.approx(expected.accuracy, abs=spread)
        assert drawn.mean_tokens == pytest.approx(expected.mean_tokens, abs=9 * spread)
