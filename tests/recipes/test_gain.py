"""The bootstrap of the gain, against what is known of it."""

import numpy as np
import pytest

from adapt_recipes.evaluation.frontier import Outcomes, frontier, random_choice
from adapt_recipes.evaluation.gain import gains, taken

COUNT = 400
SOURCE = np.random.default_rng(3)


def outcomes(probs, fast):
    correct = np.stack([fast, np.ones(COUNT)], 1)
    tokens = np.stack([np.full(COUNT, 4.0), np.full(COUNT, 20.0)], 1)
    return Outcomes(("fast", "slow"), np.stack([probs, 1 - probs], 1), correct, tokens, np.arange(COUNT) % 5)


FAST = (SOURCE.random(COUNT) < 0.5).astype(float)
BASE = outcomes(np.full(COUNT, 0.5), FAST)
KNOWING = outcomes(np.where(FAST == 1, 0.99, 0.01), FAST)


def test_a_random_choice_gains_nothing_and_is_sure_of_it():
    for row in gains(BASE, BASE, [-2.0, 0.0, 2.0]):
        assert [row.gain, row.error, row.low, row.high] == pytest.approx([0] * 4, abs=1e-12)


def test_gain_and_error():
    (row,) = gains(KNOWING, BASE, [0.0])
    (at_0,) = frontier(KNOWING, [0.0])
    assert row.gain == at_0.accuracy - random_choice(BASE, at_0.mean_tokens)
    # All right but for one problem in a hundred, against a half of the half that goes fast.
    assert row.gain == pytest.approx(0.99 - 0.75, abs=0.03)
    assert row.low < row.gain < row.high and row.high - row.low == pytest.approx(3.92 * row.error, rel=0.1)
    assert gains(KNOWING, BASE, [0.0]) == [row]


def test_four_times_the_problems_halve_the_error():
    """Independent ones; the same ones four times would do it as well, which leaves the draw of the problems out."""
    four = np.tile(np.arange(COUNT), 4)
    (once,) = gains(KNOWING, BASE, [1.0])
    (often,) = gains(taken(KNOWING, four), taken(BASE, four), [1.0])
    assert often.gain == pytest.approx(once.gain, rel=1e-9)
    assert often.error == pytest.approx(once.error / 2, rel=0.1)  # of 1000 resamples each


def test_other_problems_are_refused():
    with pytest.raises(ValueError, match="gains compare answers to the same problems: 400 and 3 were given"):
        gains(KNOWING, taken(BASE, np.arange(3)), [0.0])
