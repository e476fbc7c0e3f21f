"""The op beside programs: shapes, empty batches, no host sync, no more than 100 bytes a row, the firing draws."""

import re
from enum import IntEnum
from pathlib import Path

import pytest
import torch

import adapt_kernels as ak
from adapt_kernels.ops import steer
from adapt_kernels.ops.steer import Action, Kind, Limit, Role, RuleField, SpanFlag, SteerRows, SteerState, SteerTables
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


HEADER = Path(__file__).parents[2] / "csrc/include/adapt/steer.h"


@pytest.fixture(params=["reference", "native"])
def backend(request):
    reason = ak.backends()[request.param]
    if reason is not None:
        pytest.skip(f"backend {request.param}: {reason}")
    return request.param


def run_of(rows, rules=RULES, spans=THINK, backend="reference"):
    program = Program.from_dict({"spans": spans, "rules": rules})
    run = ProgramRun([program] * rows, vocab_size=16, max_new_tokens=9, seeds=torch.arange(rows), backend=backend)
    run.begin([[9]] * rows)
    return run


def same(ones, others):
    """Equal bit for bit, NaN included: a signal that was never filled."""
    return all(torch.equal(a.nan_to_num(-7.0), b.nan_to_num(-7.0)) for a, b in zip(ones, others, strict=True))


def one_step(tables, state, rows, tokens, backend="auto"):
    state = steer.advance(tables, state, tokens, backend=backend)
    state, wanted = steer.probe(tables, state, rows, backend=backend)
    state, decision = steer.decide(tables, state, rows, backend=backend)
    drawn = torch.where(decision.forced >= 0, decision.forced, tokens)
    state, late = steer.probe(tables, state, rows, None, drawn, backend=backend)
    return (*steer.settle(tables, state, rows, decision, drawn, backend=backend), wanted, late, *decision)


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
    state, decision = steer.step(tables, state, rows, tokens)
    assert [each.shape for each in state] == [each.shape for each in run.state]
    assert all(len(each) == 3 for each in decision)


def test_shapes_and_dtypes_of_a_step(backend):
    run = run_of(3, backend=backend)
    state, tokens, ends, replaced, wanted, late, *decision = one_step(
        run.compiled.tables, run.state, run.rows, torch.tensor([8, 1, 5]), backend
    )
    kinds = [torch.int64, torch.uint8, torch.int32, torch.float32, torch.float32, torch.int32, torch.bool]
    assert [each.dtype for each in decision] == kinds
    assert [each.dtype for each in (tokens, ends, replaced)] == [torch.int64, torch.uint8, torch.bool]
    assert [(a.dtype, a.shape) for a in state] == [(b.dtype, b.shape) for b in run.state]


@pytest.mark.parametrize("rules", [RULES, [], RULES[4:5], RULES[3:4]])
@pytest.mark.parametrize("rows", [0, 1])
def test_empty_batches_and_empty_programs(rows, rules, backend):
    run = run_of(rows, rules, THINK, backend)
    state, tokens, *_ = one_step(run.compiled.tables, run.state, run.rows, torch.full((rows,), 5), backend)
    assert tokens.tolist() == [5] * rows and len(state.numbers) == rows
    state, decision = steer.step(run.compiled.tables, run.state, run.rows, tokens, backend=backend)
    assert len(state.numbers) == len(decision.forced) == rows


def test_no_program_at_all(backend):
    run = ProgramRun([None, None], vocab_size=16, max_new_tokens=9, seeds=torch.arange(2), backend=backend)
    run.begin([[1], []])
    decision = run.decide()
    assert decision.forced.tolist() == [-1, -1] and (decision.bias == 0).all() and (decision.scale == 1).all()
    assert run.settle(decision, torch.tensor([3, 4]))[0].tolist() == [3, 4]
    assert run.fired().shape == (2, 0) and run.never_armed() == [[], []]


def test_arguments_are_read_only(backend):
    run = run_of(2, backend=backend)
    before, tables = run.state.clone(), [each.clone() for each in run.compiled.tables]
    one_step(run.compiled.tables, run.state, run.rows, torch.tensor([1, 5]), backend)
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


def test_firing_draws_are_the_published_stream(backend):
    rules = [{"bias": 5, "by": -1, "p": p} for p in (0.25, 0.5, 0.75)]
    program = Program.from_dict({"rules": rules})
    seeds = [3, -(2**63), 2**63 - 1, 12345678901]
    other = Program.from_dict({"rules": [{"bias": 6, "by": -1}]})
    run = ProgramRun(
        [[other, program]] * 4, vocab_size=8, max_new_tokens=99, seeds=torch.tensor(seeds), backend=backend
    )
    run.begin([[1]] * 4)
    for position in range(40):
        acting = run.decide().acting[:, 1:]
        expected = [
            [uniform(seed, position, PURPOSE_RULE, i) < p for i, p in enumerate((0.25, 0.5, 0.75))] for seed in seeds
        ]
        assert acting.tolist() == expected
        run.advance(torch.full((4,), 3))


def test_dead_rows_keep_their_state(backend):
    run = run_of(2, backend=backend)
    run.end(torch.tensor([True, False]))
    before = run.state.clone()
    decision = run.decide()
    run.advance(torch.tensor([5, 5]))
    assert decision.gate.tolist()[0] == -1 and decision.forced.tolist() == [-1, 1]
    assert same([each[:1] for each in before], [each[:1] for each in run.state])
    assert not torch.equal(before.numbers[1], run.state.numbers[1])


@pytest.mark.parametrize(
    ("enum", "name"), [(Kind, "Kind"), (Role, "Role"), (Action, "Action"), (Limit, "Limit"), (RuleField, "RuleField")]
)
def test_the_kernel_counts_as_the_tables_do(enum: type[IntEnum], name):
    listed = re.search(rf"enum {name} : int32_t {{(.*?)}}", HEADER.read_text("utf-8"), re.S)[1]
    names = [re.sub(r"(?<!^)(?=[A-Z])", "_", word.strip().removeprefix("k")).upper() for word in listed.split(",")]
    spoken = {"RULE_KIND": "KIND", "OF_FORCE": "FORCE"}  # each is one of two by that name in C++
    assert [spoken.get(each, each) for each in names][: len(enum)] == [each.name for each in enum]
    assert names[len(enum) :] in ([], ["LIMITS"], ["RULE_FIELDS"])


def test_the_kernel_knows_the_flags_of_spans():
    listed = re.search(r"enum SpanFlag : int32_t {(.*?)}", HEADER.read_text("utf-8"))[1]
    flags = {"kPromptCounts": SpanFlag.PROMPT_COUNTS, "kRestarts": SpanFlag.RESTARTS}
    assert listed.strip() == ", ".join(f"{name} = {int(flag)}" for name, flag in flags.items())


def test_strided_arguments_are_read_as_they_are(backend):
    run = run_of(3, backend=backend)
    tables, tokens = run.compiled.tables, torch.tensor([8, 1, 5])

    def strided(values):
        return type(values)(*(torch.stack([each, each], -1)[..., 0] for each in values))

    straight = one_step(tables, run.state, run.rows, tokens, backend)
    state, rows, columns = strided(run.state), strided(run.rows), torch.stack([tokens] * 2, 1)
    moved = one_step(strided(tables), state, rows, columns[:, 0], backend)
    assert same(straight[0], moved[0]) and same(straight[1:], moved[1:])


def test_one_programs_tables_after_anothers(backend):
    """Tables are prepared once: those of another call, and of rows that moved, are others."""
    ones, others = run_of(2, backend=backend), run_of(2, RULES[3:4], backend=backend)
    tokens = torch.tensor([1, 5])
    alone = [one_step(run.compiled.tables, run.state, run.rows, tokens, backend) for run in (ones, others)]
    for run, expected in zip((ones, others) * 2, alone * 2, strict=True):
        got = one_step(run.compiled.tables, run.state, run.rows, tokens, backend)
        assert same(expected[0], got[0]) and same(expected[1:], got[1:])


def test_a_token_outside_the_vocabulary_is_refused(backend):
    run = run_of(2, backend=backend)
    message = "must be below the vocabulary of 16; got 16" if backend == "native" else "out of"
    for call in (
        lambda tokens: steer.advance(run.compiled.tables, run.state, tokens, backend=backend),
        lambda tokens: steer.probe(run.compiled.tables, run.state, run.rows, None, tokens, backend=backend),
        lambda tokens: run.settle(run.decide(), tokens),
        lambda tokens: steer.step(run.compiled.tables, run.state, run.rows, tokens, backend=backend),
    ):
        with pytest.raises(IndexError, match=message):
            call(torch.tensor([3, 16]))


def changed(values, **others):
    return values._replace(**others)


WRONG = [
    (lambda s, r, t: (s, r, [1, 2]), TypeError, "tokens must be a tensor of torch.int64; got list"),
    (lambda s, r, t: (s, r, t.int()), TypeError, "tokens must be a tensor of torch.int64; got torch.int32"),
    (lambda s, r, t: (s, r, t[:1]), ValueError, "tokens must have shape (2,) here; got (1,)"),
    (lambda s, r, t: (s, r, t.to("meta")), ValueError, "tokens must be on the device of the state, cpu; got meta"),
    (
        lambda s, r, t: (changed(s, patterns=s.patterns[:, 1:]), r, t),
        ValueError,
        "state.patterns must have shape (2, 6) here; got (2, 5)",
    ),
    (
        lambda s, r, t: (changed(s, numbers=s.numbers[:, :5]), r, t),
        ValueError,
        "state.numbers must have shape [n, W] with W >= 13 here; got (2, 5)",
    ),
    (
        lambda s, r, t: (changed(s, registers=s.registers.double()), r, t),
        TypeError,
        "state.registers must be a tensor of torch.float32; got torch.float64",
    ),
    (
        lambda s, r, t: (s, changed(r, uses=r.uses[:, :1]), t),
        ValueError,
        "rows.uses must have shape (2, 6) here; got (2, 1)",
    ),
    (
        lambda s, r, t: (s, changed(r, alive=r.alive.int()), t),
        TypeError,
        "rows.alive must be a tensor of torch.bool; got torch.int32",
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG, ids=[message.split()[0] for *_, message in WRONG])
def test_what_does_not_fit_is_refused(change, error, message, backend):
    run = run_of(2, backend=backend)
    state, rows, tokens = change(run.state, run.rows, torch.tensor([1, 5]))
    with pytest.raises(error, match=re.escape(message)):
        steer.probe(run.compiled.tables, state, rows, None, tokens, backend=backend)
    with pytest.raises(error, match=re.escape(message)):
        steer.step(run.compiled.tables, state, rows, tokens, backend=backend)


def test_rows_without_their_tables_are_refused(backend):
    run = run_of(3, backend=backend)
    tables = run.compiled.tables._replace(limits=run.compiled.tables.limits.repeat(2, 1, 1, 1))
    with pytest.raises(ValueError, match=re.escape("tables.limits must have 1 line or one per row, 3; got 2")):
        steer.decide(tables, run.state, run.rows, backend=backend)


def test_uniforms_and_decisions_are_checked(backend):
    run = run_of(2, backend=backend)
    with pytest.raises(TypeError, match=r"uniforms must be a tensor of torch.float64; got torch.float32"):
        run.decide(torch.zeros(2, len(RULES)))
    decision = run.decide()
    with pytest.raises(TypeError, match=r"decision.forced must be a tensor of torch.int64; got torch.int32"):
        run.settle(decision._replace(forced=decision.forced.int()), torch.tensor([1, 5]))


@pytest.mark.parametrize("backend", ["native"], indirect=True)
def test_a_state_of_other_tables_is_refused(backend):
    """The reference fails where it first indexes; the kernel would read what lies behind the row."""
    run = run_of(2, backend="reference")
    fewer = run.state._replace(registers=run.state.registers[:, :0])
    with pytest.raises(ValueError, match=re.escape("state.registers must have at least 1 columns for these tables")):
        steer.decide(run.compiled.tables, fewer, run.rows, backend=backend)
    width = run.state.numbers.shape[1]
    fewer = run.state._replace(numbers=run.state.numbers[:, :-1].contiguous())
    message = f"state.numbers must have more than {width - 1} columns for these tables; got {width - 1}"
    with pytest.raises(ValueError, match=re.escape(message)):
        steer.decide(run.compiled.tables, fewer, run.rows, backend=backend)
