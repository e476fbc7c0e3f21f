"""Native steer against its reference: every decision and every bit of the state, over random programs and streams."""

import pytest
import torch
from test_against_interpreter import ROWS, STEPS, Batch, step_of

import adapt_kernels as ak

pytestmark = pytest.mark.skipif(ak.backends()["native"] is not None, reason=str(ak.backends()["native"]))


def bits(values):
    return [each.view(torch.int32) if each.dtype == torch.float32 else each for each in values]


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
        for one, other in zip(bits(runs[0].state), bits(runs[1].state), strict=True):
            assert one.dtype == other.dtype and torch.equal(one, other), step
