"""What the mode gate of a `generate` call chooses from, for those who ask: the modes' logits after every processor."""

from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch

from adapt_kernels.ops.mode_sample import mode_logits
from adapt_kernels.program.slots import Slots

_NEG_INF = float("-inf")


class GateLogits(NamedTuple):
    """logits [rows, M] float64 on the CPU, of which `chances` under a bias are P(mode); NaN in rows that ended before
    the gate."""

    logits: torch.Tensor
    temperature: float


_SEEN: ContextVar[list[GateLogits] | None] = ContextVar("adapt_kernels_gate_logits", default=None)


@contextmanager
def observed_gates():
    """Yields a list to which each gate in the block adds its `GateLogits`."""
    seen: list[GateLogits] = []
    token = _SEEN.set(seen)
    try:
        yield seen
    finally:
        _SEEN.reset(token)


def observe(shaped, token_ids, temperature: float, slots: Slots) -> None:
    """Note a gate, if anyone asked. shaped [slots, V]: logits before bias and temperature; token_ids: of the modes."""
    seen = _SEEN.get()
    if seen is not None:
        logits = mode_logits(shaped.double().masked_fill(shaped.isnan(), _NEG_INF), token_ids, temperature)
        seen.append(GateLogits(slots.spread(logits, float("nan")).cpu(), temperature))
