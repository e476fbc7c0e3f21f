"""Tensors that the kernels of mode_sample write: results, and what they leave to each other."""

from typing import NamedTuple

import torch

from adapt_kernels.ops.mode_sample.arguments import Rows
from adapt_kernels.ops.mode_sample.result import ModeSample


class Nucleus(NamedTuple):
    """Workspace of stage C; see triton_nucleus."""

    state: torch.Tensor | None
    split_mass: torch.Tensor | None
    split_count: torch.Tensor | None
    split_logits: torch.Tensor | None


def empty_nucleus(count: int, num_splits: int, points: int, segment: int, device) -> Nucleus:
    """`points` and `segment`: the configuration's."""
    return Nucleus(
        state=torch.empty(count, 4, dtype=torch.float64, device=device),
        split_mass=torch.empty(count, num_splits, points + 1, dtype=torch.float64, device=device),
        split_count=torch.empty(count, num_splits, dtype=torch.int32, device=device),
        split_logits=torch.empty(count, num_splits, segment, dtype=torch.float32, device=device),
    )


def empty_statistics(count: int, num_groups: int, by_mass: bool, device) -> tuple[torch.Tensor, ...]:
    """Peak, mass, mass at T = 1 and count word of every group; by_mass: masses that decide, in float64."""
    dtypes = (torch.float32, torch.float64 if by_mass else torch.float32, torch.float32, torch.int16)
    return tuple(torch.empty(count, num_groups, dtype=dtype, device=device) for dtype in dtypes)


def empty_candidates(count: int, num_groups: int, slots: dict, device) -> tuple[torch.Tensor | None, ...]:
    """values, weights, group_list, listed_y of the finishing kernel."""
    listed = torch.empty(count, slots["MODE_SLOTS"], dtype=torch.float64, device=device)
    if not slots["FILTERS"]:
        return None, None, None, listed
    values, weights = torch.empty(2, count, slots["CAPACITY"], dtype=torch.float64, device=device)
    return values, weights, torch.empty(count, num_groups, dtype=torch.int32, device=device), listed


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
