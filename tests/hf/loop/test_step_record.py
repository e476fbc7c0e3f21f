"""What two runs of a step issue, and where they part."""

import pytest
import torch

from adapt_kernels.hf.loop.step_record import StepRecord, difference


def record(run):
    with StepRecord() as record:
        run()
    return record


def test_equal_runs():
    x, out = torch.ones(3), torch.empty(3)
    runs = [record(lambda: torch.add(x * 2, 1, out=out)) for _ in range(2)]
    assert difference(*runs) is None and len(runs[0].ops) == 2


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (lambda x: x.clone() * 2 + 1, "op 0, aten::mul.Tensor, is aten::clone the next time"),
        (lambda x: (x * 2).add(2), "op 1, aten::add.Tensor, runs on other"),
        (lambda x: (x[:2] * 2).add(1), "op 0, aten::mul.Tensor, is aten::slice.Tensor the next time"),
        (lambda x: x * 2, "2 ops, then 1"),
    ],
)
def test_where_they_part(other, text):
    x = torch.ones(3)
    found = difference(record(lambda: (x * 2).add(1)), record(lambda: other(x)))
    assert found.startswith(text), found


def test_an_address_that_moved():
    x, y = torch.ones(3), torch.ones(3)
    moved = difference(record(lambda: x * 2), record(lambda: y * 2))
    assert moved == "op 0, aten::mul.Tensor, runs on other tensors or settings"
