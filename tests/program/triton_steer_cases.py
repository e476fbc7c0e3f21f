"""Run by test_steer_triton.py in a process under TRITON_INTERPRET=1.

The interpreter takes a tenth of a second a row: beside the golden traces, rows of random runs are compared one by one.
"""

import random

import pytest
import torch
from scripted import play
from test_against_interpreter import ROWS, STEPS, Batch, step_of
from test_golden_traces import TRACES, program

from adapt_kernels.ops import steer
from adapt_kernels.ops.steer import triton_kernel
from adapt_kernels.program import run as program_run

QUICK = ("12", "27")


@pytest.mark.parametrize("number", [n if n in QUICK else pytest.param(n, marks=pytest.mark.full) for n in TRACES])
def test_golden_trace(number):
    rules, wishes, expected, given = TRACES[number]
    played = play(rules, wishes, **given, backend="triton")
    assert played.shown == expected
    assert played.ended == (number == "25")


def of_row(value, i, backend):
    """An argument or a result as it is for row i alone."""
    if isinstance(value, torch.Tensor):
        return value[i : i + 1]
    if isinstance(value, tuple):
        rows = [of_row(each, i, backend) for each in value]
        return type(value)(*rows) if hasattr(value, "_fields") else tuple(rows)
    return backend if isinstance(value, str) else value


def bits(value):
    if isinstance(value, tuple):
        return [each for part in value for each in bits(part)]
    return [value.view(torch.int32) if value.dtype == torch.float32 else value]


def compared(name, rng, share, seen):
    """The op by its reference; now and then one of its rows also by Triton."""
    op = getattr(steer, name)

    def call(tables, state, *others, **options):
        result = op(tables, state, *others, **options)
        if rng.random() < share and len(state.numbers):
            i = rng.randrange(len(state.numbers))
            own = {n: getattr(tables, n) for n in ("limits", "lengths", "ids")}
            own = tables._replace(**{n: table[i : i + 1] for n, table in own.items() if len(table) > 1})
            given = [of_row(each, i, "triton") for each in (state, *others)]
            got = op(own, *given, **{key: of_row(each, i, "triton") for key, each in options.items()})
            for one, other in zip(bits(of_row(result, i, None)), bits(got), strict=True):
                assert one.dtype == other.dtype and torch.equal(one, other), (name, i)
            seen[name] += 1
        return result

    return call


@pytest.mark.parametrize("seed", [300, *(pytest.param(n, marks=pytest.mark.full) for n in range(301, 321))])
def test_rows_of_random_runs(seed, monkeypatch):
    rng, seen = random.Random(seed), dict.fromkeys(("advance", "probe", "decide", "step", "settle"), 0)
    ops = {name: compared(name, rng, 0.3 if seed == 300 else 1.0, seen) for name in seen}
    for name, op in ops.items():
        monkeypatch.setattr(program_run, name, op)
    batch, rows, committed = Batch(seed), list(range(ROWS)), None
    run, log = batch.run(backend="reference"), {row: [] for row in range(ROWS)}
    for step in range(STEPS):
        if step % 2:
            ops["step"](run.compiled.tables, run.state, run.rows, torch.tensor(committed))
            run.advance(torch.tensor(committed))
            _ = run.state  # looked at, so the run itself goes in halves
            committed = None
        committed = step_of(run, rows, batch, step, committed, log)
    assert min(seen[name] for name in ("advance", "decide", "step", "settle")) >= 2


def equal(ours, theirs):
    return all(torch.equal(one, other) for one, other in zip(bits(ours), bits(theirs), strict=True))


def test_uniforms_and_empty_batches():
    rules = TRACES["16"][0]
    run = program_run.ProgramRun(
        [rules] * 2, vocab_size=16, max_new_tokens=9, seeds=torch.tensor([3, -(2**63)]), inputs={"C": [0.97, 0.99]}
    )
    run.begin([[1, 9], [1]])
    tables, rows = run.compiled.tables, run.rows
    for uniforms in (None, torch.tensor([[0.69], [0.91]], dtype=torch.float64)):
        assert equal(*(steer.decide(tables, run.state, rows, uniforms, backend=n) for n in ("triton", "reference")))
        for tokens in (torch.tensor([4, 5]), torch.tensor([-1, 2])):
            ours, theirs = (steer.step(tables, run.state, rows, tokens, uniforms, n) for n in ("triton", "reference"))
            assert equal(ours, theirs)
    none = of_row(run.state, 5, None), of_row(rows, 5, None)
    assert len(steer.decide(tables, *none, backend="triton")[1].forced) == 0
    assert len(steer.step(tables, *none, torch.tensor([], dtype=torch.int64), backend="triton")[1].forced) == 0


def test_a_step_without_settle_is_one_launch(monkeypatch):
    launched, launch = [], triton_kernel._launch
    monkeypatch.setattr(triton_kernel, "_launch", lambda name, *given: (launched.append(name), launch(name, *given)))
    run = program_run.ProgramRun(
        [TRACES["19"][0]], vocab_size=16, max_new_tokens=9, seeds=torch.tensor([3]), backend="triton"
    )
    run.begin([[1]])
    for _ in range(3):
        run.decide()
        run.advance(torch.tensor([8]))
    assert launched == ["advance", "decide", "step", "step"]
    assert int(run.state.numbers[0, steer.POSITION]) == 3 and launched[4:] == ["advance"]


def test_what_rows_bring_and_strided_arguments():
    rules = program(
        {"force": {"input": "plan"}, "when": {"at": 0}},
        {"force": [2], "when": {"in": "think", "count": [{"input": "budget"}, None]}},
    )
    inputs = {"budget": [3, 0, 1], "plan": [[9, 10], None, [9]]}
    run = program_run.ProgramRun([rules] * 3, vocab_size=16, max_new_tokens=9, seeds=torch.arange(3), inputs=inputs)
    run.begin([[1]] * 3)
    tables, rows = run.compiled.tables, run.rows
    state = steer.SteerState(*(torch.stack([each, each], -1)[..., 0] for each in run.state))
    ours, theirs = (steer.decide(tables, state, rows, backend=name) for name in ("triton", "reference"))
    assert theirs[1].forced.tolist() == [9, 2, 9] and equal(ours, theirs)
    ours, theirs = (steer.advance(tables, theirs[0], theirs[1].forced, backend=n) for n in ("triton", "reference"))
    assert equal(ours, theirs)
