"""What the mode gate of a `generate` call chooses from, for those who ask: the modes' logits after every processor."""

from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch

from adapt_kernels.program.slots import Slots

_NEG_INF = float("-inf")


class GateLogits(NamedTuple):
    """logits [rows, M] float64 on the CPU, such that a bias b gives P = softmax((logits + b) / temperature), or the
    largest at temperature 0; NaN in rows that ended before the gate."""

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
        logits = _mode_logits(shaped.double().masked_fill(shaped.isnan(), _NEG_INF), token_ids, temperature)
        seen.append(GateLogits(slots.spread(logits, float("nan")).cpu(), temperature))


def _mode_logits(z, token_ids, temperature: float) -> torch.Tensor:
    """[slots, M]: a mode of any other token weighs as much as its tokens together do at this temperature."""
    listed = [i for i in token_ids if i is not None]
    if len(listed) == len(token_ids):
        return z[:, listed]
    others = z.index_fill(1, torch.tensor(listed, device=z.device), _NEG_INF)
    other = temperature * torch.logsumexp(others / temperature, 1) if temperature else others.amax(1)
    return torch.stack([other if i is None else z[:, i] for i in token_ids], 1)
