"""Signals that the shipped task tells by itself, and a run of a scheme that carries state between batches."""

from dataclasses import asdict, replace

import pytest
from tiny_runs import RL, run, weights

import adapt_recipes as ar
from adapt_recipes.tasks.problem import Problem
from adapt_recipes.training.run_state import SCHEME, load_tensors
from adapt_recipes.training.task_signals import effort, flawed, reflections, repetition

PROBLEM = asdict(Problem("3 +4 +9 . . . . . . ?", "6", 2))


def test_repetition_is_the_share_of_tokens_in_repeated_grams():
    assert repetition([[1, 2, 3, 4, 5], [1, 2, 3, 4, 1, 2, 3, 4], [7] * 5, [9, 1, 2, 3, 4, 8, 1, 2, 3, 4], []]) == [
        0, 1, 1, 0.8, 0,
    ]  # fmt: skip


def test_reflections_are_whole_words_in_any_case():
    texts = ["Wait, but hold on: however", "butter checks", [{"role": "assistant", "content": "Hmm double-check"}]]
    assert reflections(texts) == [4, 0, 2]


def test_a_trace_is_flawed_where_a_partial_sum_is_wrong():
    texts = ["<answer> 1", "<think> 7 6 </think> 6", "<think> 7 5 </think> 5", "<think> 7", "<think> 7 6 2 </think> 6"]
    assert flawed(texts, [PROBLEM] * 5) == [0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="only running_sum says what its traces must be; got a problem of math"):
        flawed(texts[:1], [{**PROBLEM, "family": "math"}])
    drawn = ar.problems(20, seed=3)
    for problem in drawn:
        start, *rest = problem.prompt.split()[: problem.difficulty + 1]
        sums = [str(sum(map(int, [start, *rest[:i]])) % 10) for i in range(1, len(rest) + 1)]
        assert flawed([f"<think> {' '.join(sums)} </think> {problem.answer} <eos>"], [asdict(problem)]) == [0]


def test_effort_is_the_same_for_every_row():
    assert effort(["a", "b"]) == [0.8, 0.8]


@pytest.mark.parametrize("scheme", ["adathink_med", pytest.param("laser_de", marks=pytest.mark.full)])
def test_a_stateful_scheme_resumes_to_the_last_bit(tmp_path, scheme):
    recipe = replace(RL, config=replace(RL.config, scheme=scheme, mode_margin_coef=None))
    run(recipe, tmp_path / "whole")
    run(recipe, tmp_path / "parts", stop_after=3)
    run(recipe, tmp_path / "parts", resume=True)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    states = [load_tensors(tmp_path / name, SCHEME) for name in ("whole", "parts")]
    assert states[0] and {k: v.tolist() for k, v in states[0].items()} == {k: v.tolist() for k, v in states[1].items()}
