"""A step of rows that verify drafts: one row of logits per drafted token and one more, each after what the draft says
before it."""

from typing import NamedTuple

import torch

from adapt_kernels.ops.steer import POSITION, Decision
from adapt_kernels.serving.control import Batch, RowControl
from adapt_kernels.serving.writing import write


class DraftedRows(NamedTuple):
    """Of each row of the logits [N], on the device: its slot, which of its slot's rows it is, the token before it."""

    slots: torch.Tensor
    local: torch.Tensor
    inputs: torch.Tensor


def step_drafted(control: RowControl, logits, batch: Batch, rows: DraftedRows, slots: int, drafts: int) -> torch.Tensor:
    """Edit the logits [N, V] in place, and return them. slots: how many the engine has; drafts: most of one row.

    Kept is the state after what was committed, so a rejected draft leaves no trace. No host sync off a CPU.
    """
    own, local, inputs = (each.long() for each in rows)
    every = torch.arange(len(logits), device=logits.device)
    first = torch.zeros(slots, dtype=torch.int64, device=logits.device).scatter(0, own, every - local)
    count = torch.zeros_like(first).scatter_add(0, own, torch.ones_like(own))
    for lane, which in control.due(batch).items():
        places, generated, state, decision = control.caught_up(lane, which, batch, drafts)
        ready = state.numbers[:, POSITION] == generated
        here = control.ids([batch.slots[n] for n in which])
        chain = [decision]
        for ahead in range(1, drafts + 1):
            token = inputs[(first[here] + ahead).clamp(max=len(logits) - 1)]
            state, decision = lane.ahead(places, state, decision, token, ready & (count[here] > ahead))
            chain.append(decision)
        number = torch.full((slots,), -1, device=logits.device).scatter(
            0, here, torch.arange(len(here), device=here.device)
        )
        mine = number[own]
        at = mine.clamp(min=0)
        flat = Decision(
            *(torch.cat(each)[local.clamp(max=drafts) * len(here) + at] for each in zip(*chain, strict=True))
        )
        write(lane, logits, every, places[at], generated[at] + local, flat, (mine >= 0) & ready[at])
    return logits
