"""What a step of a serving engine pays for the rows of `ModeProcessor`: no engine, the logits of SmolLM2's vocabulary.

To be compared with a step of the model at the same batch on the same machine.
"""

import pytest
import torch

from adapt_kernels import Modes
from adapt_kernels.program.rules import Span
from adapt_kernels.serving.control import HostTokens, RowControl
from adapt_kernels.serving.lane import Row
from adapt_kernels.serving.served import Served
from adapt_kernels.serving.settings import parse

VOCAB = 49_152
KINDS = {"off the gate": {"fast_prob": 0.5}, "budget": {"thinking_budget": 10**6}, "at the gate": {"fast_prob": 0.5}}


@pytest.mark.parametrize("rows", [1, 32, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_step(measure, benchmark, kind, rows):
    control = RowControl(
        Served(Modes(fast=5, slow=6), {}, (2,), spans={"think": Span(6, 8)}), VOCAB, torch.device("cpu")
    )
    settings = parse(KINDS[kind], control.served)
    said = [[] if kind == "at the gate" else [5] for _ in range(rows)]
    for slot, own in enumerate(said):
        control.add(slot, Row(settings, [1, 2, 3], own, slot, 0.7, 2**30))
    logits = torch.randn(rows, VOCAB)

    def step():
        control.step(logits, HostTokens(control, [(slot, slot) for slot in range(rows)]))
        if kind == "budget":
            for own in said:
                own.append(9)

    benchmark.extra_info.update(rows=rows, kind=kind, vocab=VOCAB)
    measure(step)
