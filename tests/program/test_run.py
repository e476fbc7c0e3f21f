"""`ProgramRun`: several programs in one batch, what rows bring, windows, settings and moving slots."""

import math
import re

import pytest
import torch
from scripted import play
from toy_tokenizer import TRACE_TOKENIZER

from adapt_kernels.ops.steer import ENDS_AFTER, ENDS_BEFORE
from adapt_kernels.program.program import Program
from adapt_kernels.program.run import ProgramRun
from adapt_kernels.program.settings import zipf_cut, zipf_exponent

THINK = {"think": {"open": 1, "close": 2}}
CALL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def program(*rules):
    return Program.from_dict({"spans": THINK, "rules": list(rules)}, TRACE_TOKENIZER)


def start(programs, tails=None, **given):
    rows = len(programs)
    run = ProgramRun(programs, vocab_size=16, max_new_tokens=20, seeds=torch.arange(rows), **given)
    run.begin([[1]] * rows if tails is None else tails)
    return run


def steps(run, drawn, count):
    """Tokens [rows][count] where every row draws `drawn` and nothing ends."""
    rows, tokens = [], None
    for _ in range(count):
        if tokens is not None:
            run.advance(tokens)
        decision = run.decide()
        tokens = torch.where(decision.forced >= 0, decision.forced, drawn)
        tokens = run.settle(decision, tokens)[0]
        rows.append(tokens.tolist())
    return [list(row) for row in zip(*rows, strict=True)]


def test_rows_run_programs_of_their_own():
    short = program({"force": [2], "when": {"in": "think", "count": [1, None]}})
    long = program({"force": [3, 2], "when": {"in": "think", "count": [3, None]}})
    ban = program({"bias": 5, "by": "ban"}, {"sample": {"temperature": 0.5}})
    run = start([short, None, [ban, long], long])
    assert steps(run, 8, 6) == [[8, 2, 8, 8, 8, 8], [8] * 6, [8, 8, 8, 3, 2, 8], [8, 8, 8, 3, 2, 8]]
    assert run.fired().tolist() == [[1, -1, -1], [-1, -1, -1], [4, 4, 1], [1, -1, -1]]
    silent = start([short, None, [ban, long], long], unreported=[long])
    steps(silent, 8, 6)
    assert silent.fired().tolist() == [[1, -1], [-1, -1], [4, 4], [-1, -1]] and silent.never_armed() == [[]] * 4


def test_each_rows_programs_rank_in_its_own_order():
    """Whatever other rows list: a program that a later row puts first has not come last for that."""
    first, second, last = (program({"force": [token], "when": {"at": 0}}) for token in (8, 9, 10))
    run = start([[first, last], [second, last], last, [first, second, last]])
    assert steps(run, 11, 2) == [[8, 11], [9, 11], [10, 11], [8, 11]]
    assert run.fired().tolist() == [[1, 0, -1], [1, 0, -1], [1, -1, -1], [1, 0, 0]]
    assert steps(start([[first, last, first]]), 11, 2) == [[8, 11]]
    with pytest.raises(ValueError, match="rows list the same programs in different orders"):
        start([[first, second], [second, first]])


def test_bounds_and_sequences_may_come_with_the_row():
    rules = program(
        {"force": {"input": "plan"}, "when": {"at": 0}},
        {"force": [2], "when": {"in": "think", "count": [{"input": "budget"}, None]}},
    )
    run = start([rules] * 4, inputs={"budget": [3, 0, None, 5], "plan": [[9, 10], None, [], [9]]})
    expected = [[9, 10, 8, 2, 8], [2, 8, 8, 8, 8], [8] * 5, [9, 8, 8, 8, 8]]
    assert steps(run, 8, 5) == expected
    run = start([rules] * 4, inputs={"budget": [3, 0, None, 5], "plan": [[9, 10], None, [], [9]]})
    run.place(torch.tensor([3, 0]))
    assert steps(run, 8, 5) == [expected[3], expected[0]]
    assert run.fired().tolist() == [[1, 1], [0, 0], [0, 0], [1, 0]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "the program reads the row input 'budget': give one value per row, program_inputs={'budget': ...}"),
        ({"inputs": {"budget": [1]}}, "the row input 'budget' must have one value per row, 2; got 1 values"),
        ({"inputs": {"budget": 4}}, "the row input 'budget' must have one value per row, 2; got 4"),
        ({"inputs": {"budget": [1, -1]}}, "the row input 'budget' must be an integer >= 0 or None; got [1, -1]"),
        ({"inputs": {"budget": [1, 1.5]}}, "the row input 'budget' must be an integer >= 0 or None; got [1, 1.5]"),
        ({"inputs": {"budget": ["3", 1]}}, "the row input 'budget' must be an integer >= 0 or None; got ['3', 1]"),
        ({"inputs": {"budget": [1, math.nan]}}, "must be an integer >= 0 or None; got [1, nan]"),
        (
            {"inputs": {"budget": [1, 1], "n": [1, 1]}},
            "no rule reads the row input 'n'; the program's inputs are 'budget'",
        ),
    ],
)
def test_row_inputs_that_do_not_fit_are_refused(given, message):
    rules = program({"force": [2], "when": {"in": "think", "count": [{"input": "budget"}, None]}})
    with pytest.raises(ValueError, match=re.escape(message)):
        start([rules] * 2, **given)


@pytest.mark.parametrize("value", ["a", None, math.nan, True, [0.0]])
def test_numbers_of_rows_are_checked(value):
    rules = program({"bias": 8, "by": "ban", "when": {"if": {"easy": [1, None]}}})
    with pytest.raises(ValueError, match=re.escape(f"'easy' must be a number, not NaN; got {value!r} for row 1")):
        start([rules] * 2, inputs={"easy": [1, value]})
    start([rules, None], inputs={"easy": [1, value]})  # its row does not read it


@pytest.mark.parametrize("plan", [[99], [-1], 5, [1.5], "text"])
def test_forced_ids_of_rows_are_checked(plan):
    rules = program({"force": {"input": "plan"}, "when": {"at": 0}})
    with pytest.raises(ValueError, match=re.escape("the row input 'plan' must hold ids below the vocabulary of 16")):
        start([rules], inputs={"plan": [plan]})


def test_what_is_no_program_is_refused():
    with pytest.raises(TypeError, match="a row's program must be a Program, a list of them or None; got 'budget'"):
        start(["budget"])


def test_the_mode_of_the_callers_gate():
    rules = program({"bias": 5, "by": "ban", "when": {"mode": "slow"}})
    run = start([rules] * 3, outer_modes=("fast", "slow"))
    assert run.decide().acting.tolist() == [[False]] * 3
    run.tell_modes(torch.tensor([1, 0, -1], dtype=torch.int8))
    assert run.decide().acting.tolist() == [[True], [False], [False]]


def test_a_window_is_full_before_it_has_a_mean():
    stop = {"force": [], "stop": True, "when": {"if": {"conf:20": {"range": [None, 2.0], "mean": 3}}}}
    run = start([program(stop)] * 2)
    seen = []
    for step, value in enumerate([9.0, 1.0, 1.0, 1.0, 1.0]):
        if step:
            run.advance(torch.tensor([8, 8]))
        run.fill({"conf:20": torch.tensor([value, 9.0])})
        seen.append(run.decide().ends.tolist())
    assert seen == [[0, 0], [0, 0], [0, 0], [ENDS_BEFORE, 0], [ENDS_BEFORE, 0]]


def test_a_signal_that_was_not_told_holds_nothing():
    run = start([program({"bias": 5, "by": "ban", "when": {"if": {"entropy": [None, None]}}})])
    assert run.decide().acting.tolist() == [[False]]
    run.fill({"entropy": torch.tensor([float("inf")])})
    assert run.decide().acting.tolist() == [[True]]


def test_stop_ends_the_row_after_the_last_id():
    run = start([program({"force": [9, 10], "stop": True, "when": {"at": 1}})])
    ends = []
    for step in range(3):
        if step:
            run.advance(torch.tensor([8]))
        decision = run.decide()
        ends.append(int(run.settle(decision, torch.tensor([8]))[1][0]))
    assert ends == [0, 0, ENDS_AFTER]


def test_sample_rules_replace_the_settings_they_name():
    rules = program(
        {"sample": {"temperature": 0.0}, "when": {"in": "!think"}},
        {"sample": {"temperature": 0.5, "top_k": 3}, "when": {"in": "think"}},
    )
    run = start([rules, rules, None], tails=[[1], [9], [1]])
    settings = run.settings(run.decide(), {**CALL, "top_p": 0.9, "temperature": torch.tensor([1.0, 1.0, 0.7])})
    assert settings["temperature"].tolist() == pytest.approx([0.5, 0.0, 0.7], abs=1e-7)  # 0.7 in float32
    assert settings["top_k"].tolist() == [3, 0, 0] and settings["top_p"].tolist() == [0.9] * 3


def test_biases_add_up_in_their_order():
    rules = program(
        {"bias": [3, 4], "by": {"scale": 0.5}},
        {"bias": [4, 5], "by": 1.5},
        {"bias": [5, 6], "by": -0.25},
        {"bias": [4, 5, 6, 7], "by": "only"},
        {"bias": 7, "by": "ban"},
    )
    run = start([rules])
    decision, classes = run.decide(), run.compiled.tables.bias_classes.long()
    assert decision.scale[0, classes][:8].tolist() == [1, 1, 1, 0.5, 0.5, 1, 1, 1]
    out = -math.inf
    assert decision.bias[0, classes][:9].tolist() == [out, out, out, out, 1.5, 1.25, -0.25, out, out]


def test_mirostats_first_form():
    """On an exact Zipf law the estimate is its exponent, and k follows the published formula."""
    rank = torch.arange(1, 101, dtype=torch.float64)
    top = torch.stack([-1.2 * rank.log(), -2.0 * rank.log()])
    s = zipf_exponent(top)
    assert s.tolist() == pytest.approx([1.2, 2.0], rel=1e-12)
    mu = torch.tensor([6.0, 3.0], dtype=torch.float64)
    formula = [((0.2 * 2**6) / (1 - 50000**-0.2)) ** (1 / 1.2), ((1.0 * 2**3) / (1 - 50000**-1.0)) ** 0.5]
    assert zipf_cut(mu, s, 50000).tolist() == [round(each) + 1 for each in formula]
    rule = program({"sample": {"surprise": 3.0, "rate": 1.0, "zipf": True}})
    run = start([rule])
    decision = run.decide()
    with pytest.raises(ValueError, match="a sample rule with 'zipf' needs zipf="):
        run.settings(decision, CALL)
    assert run.settings(decision, CALL, zipf=s[:1])["top_k"].tolist() == [min(16, int(zipf_cut(mu[:1], s[:1], 16)))]


def test_gates_force_what_surrounds_their_choice():
    gate = {"gate": {"fast": {"seq": [[1, 3, 2, 3]]}, "slow": {"seq": [[1, 3, 8]]}}, "when": {"at": 0}}
    run = start([program(gate)] * 2, tails=[[9], [9]])
    tokens, log = None, []
    for _ in range(5):
        if tokens is not None:
            run.advance(tokens)
        decision = run.decide()
        drawn = torch.where(decision.gate >= 0, torch.tensor([2, 8]), torch.tensor([10, 10]))
        tokens = run.settle(decision, torch.where(decision.forced >= 0, decision.forced, drawn))[0]
        log.append((tokens.tolist(), decision.gate.tolist()))
    assert log == [([1, 1], [-1, -1]), ([3, 3], [-1, -1]), ([2, 8], [0, 0]), ([3, 10], [-1, -1]), ([10, 10], [-1, -1])]
    assert run.modes(0).tolist() == [0, 1] and run.fired().tolist() == [[1], [1]]


def test_counts_that_no_row_reaches():
    """Larger than the int32 of the tables: as good as for ever."""
    ever = 2**70
    ban = {"bias": 8, "by": "ban", "when": {"after": 1, "times": ever}, "hold": ever}
    late = {"force": [2], "when": {"in": "think", "count": [1, ever]}, "settle": {"on": 4, "within": ever}}
    never = {"force": [5], "when": {"in": "think", "every": ever}}
    program = Program.from_dict({"spans": {"think": {"open": 1, "close": 2}}, "rules": [ban, late, never]})
    assert play(program, "8>9 8>9 4 . 6").shown == "9~ 9~ 4~ [2] 6~"
