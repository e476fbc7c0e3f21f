"""Tensors that the kernels of mode_sample write: results, and what they leave to each other."""

from typing import NamedTuple

import torch

from adapt_kernels.ops.mode_sample.arguments import Rows
from adapt_kernels.ops.mode_sample.result import ModeSample


class Nucleus(NamedTuple):
    """Workspace of stage C; see triton_nucleus."""

    state: torch.Tensor | None
    group_above: torch.Tensor | None
    group_word: torch.Tensor | None
    blocks: torch.Tensor | None
    extra: torch.Tensor | None
    places: torch.Tensor | None


def empty_nucleus(count: int, num_groups: int, capacity: int, device) -> Nucleus:
    """capacity: candidates of a row."""
    return Nucleus(
        state=torch.empty(count, 2, dtype=torch.float32, device=device),
        group_above=torch.empty(count, num_groups, dtype=torch.float32, device=device),
        group_word=torch.empty(count, num_groups, dtype=torch.int32, device=device),
        blocks=torch.empty(count, num_groups, 16, dtype=torch.uint8, device=device),
        extra=torch.empty(count, num_groups, dtype=torch.int64, device=device),
        places=torch.empty(count, capacity, dtype=torch.int32, device=device),
    )


def empty_statistics(count: int, num_groups: int, device) -> tuple[torch.Tensor, ...]:
    """Peak, mass, mass at T = 1 and count word of every group."""
    dtypes = (torch.float32, torch.float32, torch.float32, torch.int16)
    return tuple(torch.empty(count, num_groups, dtype=dtype, device=device) for dtype in dtypes)


def empty_candidates(count: int, num_groups: int, slots: dict, device) -> tuple[torch.Tensor | None, ...]:
    """values, weights, group_list, tops, listed_y of the finishing kernel."""
    listed = torch.empty(count, slots["MODE_SLOTS"], dtype=torch.float64, device=device)
    tops = torch.empty(count, num_groups, dtype=torch.float64, device=device)
    if not slots["FILTERS"]:
        return None, None, None, tops, listed
    values, weights = torch.empty(2, count, slots["CAPACITY"], dtype=torch.float64, device=device)
    group_list = torch.empty(count, num_groups, dtype=torch.int32, device=device)
    return values, weights, group_list, tops, listed


def empty_result(rows: Rows) -> ModeSample:
    """Every field of every row."""
    count, device = rows.count, rows.logits.device

    def empty(dtype, *shape):
        return torch.empty(count, *shape, dtype=dtype, device=device)

    return ModeSample(
        tokens=empty(torch.int64),
        modes=empty(torch.int8),
        logprobs=empty(torch.float32),
        raw_logprobs=empty(torch.float32),
        tempered_logprobs=empty(torch.float32),
        mode_probs=empty(torch.float32, len(rows.mode_ids)),
        kept=empty(torch.int32),
        flags=empty(torch.int32),
    )
