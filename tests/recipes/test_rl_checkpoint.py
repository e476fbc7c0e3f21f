"""What the shipped RL checkpoint promises, on a small sample of problems that no training drew.

The bands are the promise less three standard errors of the sample, rounded outwards.
"""

import json

import numpy as np
import pytest

import adapt_kernels as ak
import adapt_recipes as ar
from adapt_recipes.evaluation.compare import BIASES
from adapt_recipes.evaluation.frontier import frontier, levels, measure_modes, random_choice, spread_problems
from adapt_recipes.evaluation.gain import gains
from adapt_recipes.models import load

COUNT = 1600
UNUSED_SEED = 78


@pytest.fixture(scope="module")
def measured():
    tasks = spread_problems("running_sum", COUNT, UNUSED_SEED)
    found = {}
    for name in ("sft", "rl"):
        folder = ar.checkpoint_path(name)
        model, tokenizer = load(folder)
        modes = ak.Modes.from_pretrained(folder)
        ak.patch(model, modes)
        found[name] = measure_modes(model, tokenizer, modes, tasks, rows_per_call=COUNT)
    return found


def test_folder_is_small_and_loads_like_the_other():
    sft, rl = ar.checkpoint_path("sft"), ar.checkpoint_path("rl")
    assert {path.name for path in rl.iterdir()} == {path.name for path in sft.iterdir()}
    assert sum(path.stat().st_size for path in rl.iterdir()) < 1_000_000
    for name in ("config.json", "generation_config.json", "modes.json", "tokenizer.json", "tokenizer_config.json"):
        assert json.loads((rl / name).read_text()) == json.loads((sft / name).read_text()), name
    assert (rl / "model.safetensors").read_bytes() != (sft / "model.safetensors").read_bytes()


def test_slow_stays_right(measured):
    assert measured["rl"].correct[:, 1].mean() >= 0.99
    assert min(row.accuracy["slow"] for row in levels(measured["rl"])) >= 0.975


def test_fast_keeps_what_the_start_knew(measured):
    """A point is the promise; the band is three standard errors of the difference over the same problems."""
    each = measured["sft"].correct[:, 0] - measured["rl"].correct[:, 0]
    assert each.mean() <= 0.01 + 3 * np.std(each) / np.sqrt(COUNT)
    assert levels(measured["rl"])[0].accuracy["fast"] >= 0.97


def test_the_mode_is_chosen_by_difficulty(measured):
    p_fast = [row.p_fast for row in levels(measured["rl"])]
    assert p_fast[0] >= 0.9 and p_fast[-1] <= 0.1
    assert p_fast == sorted(p_fast, reverse=True)
    before = [row.p_fast for row in levels(measured["sft"])]
    assert max(before) - min(before) < 0.1


def test_accuracy_and_tokens_are_monotone_in_the_bias(measured):
    rows = frontier(measured["rl"], BIASES)
    for slower, faster in zip(rows, rows[1:], strict=False):
        assert slower.accuracy > faster.accuracy and slower.mean_tokens > faster.mean_tokens
    assert rows[0].accuracy >= 0.985 and rows[0].mean_tokens >= 8.3
    assert rows[-1].p_fast >= 0.95


def test_it_beats_a_random_mode_choice(measured):
    """Both accuracies are over the same problems; the band is three standard errors of their difference."""
    (at_0,) = frontier(measured["rl"], [0.0])
    gain = at_0.accuracy - random_choice(measured["sft"], at_0.mean_tokens)
    each = (measured["rl"].probs * measured["rl"].correct).sum(axis=1) - measured["sft"].correct.mean(axis=1)
    assert gain >= 0.05 - 3 * np.std(each) / np.sqrt(COUNT)
    assert gain > 3 * np.std(each) / np.sqrt(COUNT)


def test_no_bias_falls_below_a_random_mode_choice(measured):
    """Three standard errors below is what chance leaves."""
    rows = gains(measured["rl"], measured["sft"], BIASES)
    assert [row.bias for row in rows if row.gain < -3 * row.error] == []
    assert max(row.gain for row in rows) >= 0.06
