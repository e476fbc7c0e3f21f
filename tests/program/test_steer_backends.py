"""Native steer against its reference, and `step` against its halves: every decision and every bit of the state."""

import random

import pytest
import torch
from test_against_interpreter import ROWS, STEPS, VOCAB, Batch, step_of

import adapt_kernels as ak
from adapt_kernels.ops import steer

NATIVE = ak.backends()["native"]


def bits(values):
    return [each.view(torch.int32) if each.dtype == torch.float32 else each for each in values]


def equal(ones, others):
    pairs = zip(bits(ones), bits(others), strict=True)
    return all(one.dtype == other.dtype and torch.equal(one, other) for one, other in pairs)


@pytest.mark.skipif(NATIVE is not None, reason=str(NATIVE))
@pytest.mark.parametrize("seed", range(200, 212))
def test_native_is_the_reference_bit_for_bit(seed):
    batch, rows = Batch(seed), list(range(ROWS))
    runs = [batch.run(backend=name) for name in ("reference", "native")]
    logs = [{row: [] for row in rows} for _ in runs]
    committed = [None, None]
    for step in range(STEPS):
        pairs = zip(runs, committed, logs, strict=True)
        committed = [step_of(run, rows, batch, step, tokens, log) for run, tokens, log in pairs]
        assert logs[0] == logs[1]
        assert equal(runs[0].state, runs[1].state), step


@pytest.mark.parametrize("seed", range(220, 226))
def test_a_step_is_its_halves_bit_for_bit(seed, backend):
    """After prompts and at every later step, of dead rows too, whatever their tokens."""
    batch, rows, rng = Batch(seed), list(range(ROWS)), random.Random(seed)
    draws = torch.Generator().manual_seed(seed)
    run, log, committed = batch.run(backend=backend), {row: [] for row in range(ROWS)}, None
    for number in range(STEPS):
        alive = run.rows.alive & (torch.rand(ROWS, generator=draws) < 0.8)
        given = run.compiled.tables, run.state, run.rows._replace(alive=alive)
        tokens = torch.tensor([rng.randrange(-1, VOCAB) for _ in rows])
        uniforms = torch.rand(ROWS, len(run.compiled.rules), dtype=torch.float64, generator=draws)
        uniforms = uniforms if number % 2 else None
        state, decision = steer.step(*given, tokens, uniforms, backend)
        between = steer.advance(*given[:2], tokens, backend=backend)
        halves = steer.decide(given[0], between, given[2], uniforms, backend)
        assert equal(state, halves[0]) and equal(decision, halves[1])
        committed = step_of(run, rows, batch, number, committed, log)
