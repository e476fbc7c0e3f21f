"""`ProgramRun` asks the op once a step: a committed token waits, and whoever looks in between sees it committed."""

import pytest
import torch
from test_run import THINK, program, start
from toy_tokenizer import TRACE_TOKENIZER

from adapt_kernels.ops.steer import POSITION
from adapt_kernels.program import run as program_run
from adapt_kernels.program.program import Program


@pytest.fixture
def launches(monkeypatch):
    """The calls of the op, by name, in their order."""
    seen = []

    def counted(name):
        op = getattr(program_run, name)
        return lambda *given, **options: (seen.append(name), op(*given, **options))[1]

    for name in ("advance", "probe", "decide", "step", "settle"):
        monkeypatch.setattr(program_run, name, counted(name))
    return seen


BUDGET = {"force": [3, 2], "when": {"in": "think", "count": [3, None]}}
BAN = {"bias": 5, "by": "ban", "when": {"in": "think"}}


def test_a_step_in_which_nobody_looks_is_one_launch(launches):
    run = start(
        [program(BUDGET, BAN, {"bias": 6, "by": 1.0, "when": {"if": {"entropy": [0.5, None]}, "mode": "slow"}})] * 2,
        outer_modes=("fast", "slow"),
    )
    launches.clear()
    for step in range(5):
        run.tell_modes(torch.tensor([1, 0]))
        run.fill({"entropy": torch.tensor([0.4, 0.6])})
        assert not run.wanted_probes()
        decision = run.decide()
        run.advance(torch.where(decision.forced >= 0, decision.forced, 8))
        assert launches == ["decide"] + ["step"] * step
    assert run.state.numbers[:, POSITION].tolist() == [5, 5] and run.fired().tolist() == [[1, 3, 0]] * 2
    assert launches[5:] == ["advance"]


LOOKS = {
    "advance": lambda run: run.advance(torch.tensor([9, 4, 2])),
    "snapshot": lambda run: run.snapshot()[0],
    "rewind": lambda run: (before := run.snapshot(), run.advance(torch.tensor([2, 2, 2])), run.rewind(before))[1],
    "fill": lambda run: run.fill({"entropy": torch.tensor([0.9, 0.1, 0.9])}),
    "tell_modes": lambda run: run.tell_modes(torch.tensor([0, 1, -1])),
    "wanted_probes": lambda run: [each for _, each in run.wanted_probes()],
    "modes": lambda run: run.modes(0),
    "holds_stops": lambda run: run.holds_stops(),
    "foresee": lambda run: run.foresee(),
    "stops_next": lambda run: run.stops_next(),
    "admit": lambda run: run.admit(torch.tensor([True, False, True])),
    "end": lambda run: run.end(torch.tensor([False, True, False])),
    "place": lambda run: run.place(torch.tensor([2, 0])),
    "fired": lambda run: run.fired(),
    "never_armed": lambda run: run.never_armed(),
}


def bits(value):
    """Of what a look returns: its tensors, NaN as any other number."""
    if isinstance(value, (tuple, list)):
        return [each for part in value for each in bits(part)]
    return [value.view(torch.int32) if value.dtype == torch.float32 else value] if torch.is_tensor(value) else [value]


def equal(ours, theirs):
    pairs = zip(bits(ours), bits(theirs), strict=True)
    return all(torch.equal(one, other) if torch.is_tensor(one) else one == other for one, other in pairs)


@pytest.mark.parametrize("look", LOOKS)
def test_whoever_looks_between_two_steps_sees_the_tokens_committed(look):
    """Against a run whose state is read after every token."""
    rules = [
        {"gate": {"skip": 2, "think": None}, "when": {"in": "think", "after": 9}},
        {"force": [], "stop": True, "when": {"in": "think", "count": [2, None], "after": 4}},
        {"probe": [3], "max": 4, "measure": "mean_prob", "into": "C", "when": {"in": "think", "every": 1}},
        {"bias": 6, "by": 1.0, "when": {"if": {"entropy": [0.5, None]}, "mode": "slow"}},
        BUDGET,
        BAN,
    ]
    spans = {"think": {**THINK["think"], "stops": "hold"}}
    programs = [Program.from_dict({"spans": spans, "rules": rules}, TRACE_TOKENIZER)] * 3
    waiting, eager = (start(programs, outer_modes=("fast", "slow")) for _ in range(2))
    for drawn in ([8, 8, 8], [9, 4, 2], [8, 1, 8], [4, 8, 8]):
        for run in (waiting, eager):
            decision = run.decide()
            run.advance(torch.where(decision.forced >= 0, decision.forced, torch.tensor(drawn)[: len(run.slots)]))
        _ = eager.state
        assert equal(LOOKS[look](waiting), LOOKS[look](eager))
    assert equal(waiting.decide(), eager.decide()) and equal(waiting.state, eager.state)
