"""steer on Triton, compiled for four GPUs as its wrappers launch it: one launch per half-step or step; needs no GPU."""

import os

import pytest
import torch

triton = pytest.importorskip("triton")

from stub_driver import TARGETS, StubDriver  # noqa: E402

from adapt_kernels.ops.steer import triton_kernel  # noqa: E402
from adapt_kernels.program.program import Program  # noqa: E402
from adapt_kernels.program.run import ProgramRun  # noqa: E402

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"), reason="the interpreter does not compile"
    ),
    pytest.mark.filterwarnings("error:TRITON_DEFAULT_FP_FUSION is unset"),
]
SENTENCE = [*range(100, 120), 3, 2, 3]
BUDGET = {
    "spans": {"think": {"open": 1, "close": 2, "breaks": 7}},
    "rules": [
        {"force": SENTENCE, "when": {"in": "think", "count": [64, None]}, "settle": {"on": [3, 4], "within": 6}},
        {"force": [3, 2], "when": {"in": "think", "drawn": 6}},
        {"bias": 6, "by": "ban", "when": {"after": 2}, "hold": 2},
        {"bias": list(range(1000, 1600)), "by": "ban", "when": {"in": "think"}, "p": 0.9},
    ],
}


@pytest.fixture
def stub(request, monkeypatch):
    driver = StubDriver(request.param)
    monkeypatch.setattr(triton.runtime.driver, "_active", driver)
    return driver


def run_of(rows):
    run = ProgramRun(
        [Program.from_dict(BUDGET)] * rows,
        vocab_size=151936,
        max_new_tokens=99,
        seeds=torch.arange(rows),
        backend="reference",
    )
    run.begin([[1]] * rows)
    return run


def half_steps(run, rows):
    tables, tokens = run.compiled.tables, torch.zeros(rows, dtype=torch.int64)
    state = triton_kernel.advance(tables, run.state, tokens)
    triton_kernel.probe(tables, state, run.rows)
    state, decision = triton_kernel.decide(tables, state, run.rows)
    triton_kernel.settle(tables, state, run.rows, decision, tokens)
    triton_kernel.step(tables, run.state, run.rows, tokens)


@pytest.mark.parametrize(
    "stub", [n if n == "sm_90" else pytest.param(n, marks=pytest.mark.full) for n in TARGETS], indirect=True
)
def test_a_half_step_is_one_launch_and_so_is_a_step(stub):
    half_steps(run_of(64), 64)
    assert [launch.kernel for launch in stub.launches] == ["advance", "probe", "decide", "settle", "step"]
    for launch in stub.launches:
        assert launch.grid == (64, 1, 1) and launch.spilled == 0 and launch.registers <= 128, launch


@pytest.mark.parametrize("stub", ["sm_90"], indirect=True)
def test_other_batches_do_not_recompile(stub):
    from adapt_kernels.ops.steer.triton_steps import decide, step

    def compiled():
        return [len(kernel.device_caches[stub.device][0]) for kernel in (decide, step)]

    half_steps(run_of(64), 64)
    before = compiled()
    for rows in (1, 3, 16, 63):
        half_steps(run_of(rows), rows)
    assert compiled() == before
