"""The op beside programs: shapes, empty batches, no host sync, no more than 100 bytes a row, the firing draws."""

import pytest
import torch

from adapt_kernels.ops import steer
from adapt_kernels.ops.steer import SteerRows, SteerState, SteerTables
from adapt_kernels.philox_reference import PURPOSE_RULE, uniform
from adapt_kernels.program.program import Program
from adapt_kernels.program.run import ProgramRun

THINK = {"think": {"open": 1, "close": {"seq": [[2, 15]]}, "breaks": 7}}
RULES = [
    {"gate": {"x": {"seq": [[1, 3]]}, "y": {"seq": [[1, 4]]}}, "when": {"at": 0}},
    {"force": [3, 2, 15], "when": {"in": "think", "count": [3, None]}, "settle": {"on": [3, 4], "within": 2}},
    {"force": [8], "when": {"in": "think", "drawn": 5, "times": 2}},
    {"bias": [5, 6], "by": "ban", "when": {"in": "think", "after": 4}, "hold": 2, "p": 0.5},
    {"sample": {"temperature": 0.5}, "when": {"in": "think", "if": {"entropy": [0.5, None]}}},
    {"probe": [3], "max": 4, "measure": "mean_prob", "into": "C", "when": {"in": "think", "every": 2}},
]


def run_of(rows, rules=RULES, spans=THINK):
    program = Program.from_dict({"spans": spans, "rules": rules})
    run = ProgramRun([program] * rows, vocab_size=16, max_new_tokens=9, seeds=torch.arange(rows))
    run.begin([[9]] * rows)
    return run


def same(ones, others):
    """Equal bit for bit, NaN included: a signal that was never filled."""
    return all(torch.equal(a.nan_to_num(-7.0), b.nan_to_num(-7.0)) for a, b in zip(ones, others, strict=True))


def one_step(tables, state, rows, tokens):
    state = steer.advance(tables, state, tokens)
    state, wanted = steer.probe(tables, state, rows)
    state, decision = steer.decide(tables, state, rows)
    drawn = torch.where(decision.forced >= 0, decision.forced, tokens)
    state, late = steer.probe(tables, state, rows, None, drawn)
    return (*steer.settle(tables, state, rows, decision, drawn), wanted, late, *decision)


def test_a_step_never_looks_at_a_value_on_the_host():
    run = run_of(3)

    def meta(values, kind):
        return kind(*(each.to("meta") for each in values))

    tables, state, rows = meta(run.compiled.tables, SteerTables), meta(run.state, SteerState), meta(run.rows, SteerRows)
    state, tokens, ends, replaced, wanted, late, *decision = one_step(
        tables, state, rows, torch.empty(3, dtype=torch.int64, device="meta")
    )
    assert [each.shape for each in state] == [each.shape for each in run.state]
    assert tokens.shape == ends.shape == replaced.shape == (3,) and wanted.shape == late.shape == (3, len(RULES))
    assert all(len(each) == 3 for each in decision)


def test_shapes_and_dtypes_of_a_step():
    run = run_of(3)
    state, tokens, ends, replaced, wanted, late, *decision = one_step(
        run.compiled.tables, run.state, run.rows, torch.tensor([8, 1, 5])
    )
    kinds = [torch.int64, torch.uint8, torch.int32, torch.float32, torch.float32, torch.int32, torch.bool]
    assert [each.dtype for each in decision] == kinds
    assert [each.dtype for each in (tokens, ends, replaced)] == [torch.int64, torch.uint8, torch.bool]
    assert [(a.dtype, a.shape) for a in state] == [(b.dtype, b.shape) for b in run.state]


@pytest.mark.parametrize("rules", [RULES, [], RULES[4:5], RULES[3:4]])
@pytest.mark.parametrize("rows", [0, 1])
def test_empty_batches_and_empty_programs(rows, rules):
    run = run_of(rows, rules, THINK)
    state, tokens, *_ = one_step(run.compiled.tables, run.state, run.rows, torch.full((rows,), 5))
    assert tokens.tolist() == [5] * rows and len(state.numbers) == rows


def test_no_program_at_all():
    run = ProgramRun([None, None], vocab_size=16, max_new_tokens=9, seeds=torch.arange(2))
    run.begin([[1], []])
    decision = run.decide()
    assert decision.forced.tolist() == [-1, -1] and (decision.bias == 0).all() and (decision.scale == 1).all()
    assert run.settle(decision, torch.tensor([3, 4]))[0].tolist() == [3, 4]
    assert run.fired().shape == (2, 0) and run.never_armed() == [[], []]


def test_arguments_are_read_only():
    run = run_of(2)
    before, tables = run.state.clone(), [each.clone() for each in run.compiled.tables]
    one_step(run.compiled.tables, run.state, run.rows, torch.tensor([1, 5]))
    assert same(before, run.state)
    assert same(tables, run.compiled.tables)


def test_a_budget_with_a_soft_landing_takes_less_than_100_bytes_a_row():
    close = [3, 2, 3]
    rules = [
        {"force": close, "when": {"in": "think", "count": [1024, None]}, "settle": {"on": [3, 4], "within": 102}},
        {"force": close, "when": {"in": "think", "left": [0, 512]}},
        {"force": close, "when": {"in": "think", "drawn": 6}},
        {"bias": 6, "by": "ban", "when": {"after": 2}, "hold": 2},
    ]
    run = run_of(1, rules, {"think": {"open": 1, "close": 2, "breaks": 7}})
    assert sum(each.numel() * each.element_size() for each in run.state) < 100


def test_firing_draws_are_the_published_stream():
    rules = [{"bias": 5, "by": -1, "p": p} for p in (0.25, 0.5, 0.75)]
    program = Program.from_dict({"rules": rules})
    seeds = [3, -(2**63), 2**63 - 1, 12345678901]
    other = Program.from_dict({"rules": [{"bias": 6, "by": -1}]})
    run = ProgramRun([[other, program]] * 4, vocab_size=8, max_new_tokens=99, seeds=torch.tensor(seeds))
    run.begin([[1]] * 4)
    for position in range(40):
        acting = run.decide().acting[:, 1:]
        expected = [
            [uniform(seed, position, PURPOSE_RULE, i) < p for i, p in enumerate((0.25, 0.5, 0.75))] for seed in seeds
        ]
        assert acting.tolist() == expected
        run.advance(torch.full((4,), 3))


def test_dead_rows_keep_their_state():
    run = run_of(2)
    run.end(torch.tensor([True, False]))
    before = run.state.clone()
    decision = run.decide()
    run.advance(torch.tensor([5, 5]))
    assert decision.gate.tolist()[0] == -1 and decision.forced.tolist() == [-1, 1]
    assert same([each[:1] for each in before], [each[:1] for each in run.state])
    assert not torch.equal(before.numbers[1], run.state.numbers[1])
