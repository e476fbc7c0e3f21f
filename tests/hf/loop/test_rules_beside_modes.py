"""Rules while a mode is opened in one row and closed in another: neither cuts the other short."""

import pytest
import torch
from scripted_model import PLANS, run

import adapt_kernels as ak

FILLED = {"force": [10], "when": {"at": 7}}


def program(*rules):
    return ak.Program.from_dict({"rules": list(rules)})


@pytest.mark.parametrize(("plan", "more"), PLANS)
def test_a_row_that_closes_while_another_still_opens(plan, more):
    modes = ak.Modes(fast=ak.Mode(12, max_new_tokens=1, closing=(3, 2, 4)), slow=(1, 5, 7, 11))
    rows, out = run(". . . . . 8 8 6", (9,), 2, modes, program=program(FILLED), mode=["fast", "slow"], **more)
    assert rows == [[12, 3, 2, 4, 14, 8, 8, 10], [1, 5, 7, 11, 14, 8, 8, 10]]
    assert out.stats.plan == plan and out.fired.tolist() == [[1], [1]]
    assert out.forced.tolist() == [[True] * 4 + [False] * 3 + [True]] * 2


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize(("plan", "more"), PLANS)
def test_a_rule_ends_no_row_before_its_mode_is_written(plan, more, at):
    modes = ak.Modes(fast=12, slow=(1, 5, 7))
    ends = program({"force": [], "stop": True, "when": {"at": [at, None]}})
    rows, out = run(". . . . . . 6", (9,), 2, modes, program=ends, mode=["slow", "fast"], **more)
    assert rows[0] == [1, 5, 7] and out.fired.tolist() == [[1], [1]] and out.stats.plan == plan


def test_scores_of_a_greedy_program_gate_are_those_of_temperature_one():
    gate = {"gate": {"skip": 2, "think": 3}, "prob": 0.3, "when": {"at": 0}}
    rows, out = run("8 8 6", rows=5, program=program(gate), seed=1, output_scores=True)
    chances = torch.softmax(out.scores[0], -1)
    assert torch.allclose(chances[:, [2, 3]], torch.tensor([0.3, 0.7]), atol=1e-6)
    assert {row[0] for row in rows} <= {2, 3}
