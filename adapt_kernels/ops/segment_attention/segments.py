"""What segment_attention takes: segments, groups of rows that share one, and the checks."""

from typing import NamedTuple

import torch

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class RowGroups(NamedTuple):
    """Rows that share an entry of a segment. group_of_row [B] int64; order [B] int64: rows sorted by group; first
    [G + 1] int64: where each group starts in `order`; largest: most rows in a group; seats [G, largest] int64: the rows
    of each group, filled up with any row; seat_of_row [B] int64: each row's place in the flattened seats."""

    group_of_row: torch.Tensor
    order: torch.Tensor
    first: torch.Tensor
    largest: int
    seats: torch.Tensor
    seat_of_row: torch.Tensor

    def to(self, device) -> "RowGroups":
        """The same groups on another device, without waiting for it."""
        return RowGroups._make(x.to(device, non_blocking=True) if torch.is_tensor(x) else x for x in self)


class Segment(NamedTuple):
    """keys [G, Hkv, T, D], values [G, Hkv, T, Dv]; groups None: entry b belongs to row b alone."""

    keys: torch.Tensor
    values: torch.Tensor
    groups: RowGroups | None = None


def group_rows(group_of_row, num_groups: int) -> RowGroups:
    """The groups of `group_of_row` [B] int64, in [0, num_groups). One host sync if it is on a GPU; build it when rows
    change, not per step."""
    counts = torch.bincount(group_of_row, minlength=num_groups)
    first = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    order = group_of_row.argsort(stable=True)
    largest = int(counts.max()) if num_groups else 0
    position = torch.arange(len(order), device=order.device) - first[group_of_row[order]]
    seat_of_row = torch.empty_like(order)
    seat_of_row[order] = group_of_row[order] * largest + position
    seats = order.new_zeros(num_groups * largest).index_copy_(0, seat_of_row, torch.arange(len(order)).to(order))
    return RowGroups(group_of_row, order, first, largest, seats.view(num_groups, largest), seat_of_row)


def checked(query, segments, scale, starts, window, softcap, sinks) -> tuple:
    """(query, segments, scale, starts, window, softcap, sinks) with defaults filled in, or an error."""
    if not torch.is_tensor(query) or query.dtype not in _DTYPES:
        given = query.dtype if torch.is_tensor(query) else type(query).__name__
        raise TypeError(f"query must be a tensor of float32, bfloat16, float16 or float64; got {given}")
    if query.ndim != 3 or query.stride(2) != 1 or 0 in query.shape[1:]:
        raise ValueError(f"query must be [B, Hq, D] with stride 1 last; got {_layout(query)}")
    segments = tuple(segments)
    if not 1 <= len(segments) <= 3:
        raise ValueError(f"segments must be 1 to 3; got {len(segments)}")
    for place, segment in enumerate(segments):
        _check_segment(f"segments[{place}]", query, segment)
    if len({(s.keys.shape[1], s.values.shape[3]) for s in segments}) > 1:
        raise ValueError("segments must agree in KV heads and in the head size of values")
    if sum(segment.keys.shape[2] for segment in segments) == 0:
        raise ValueError("segments must hold at least the newest position; they hold none")
    for name, tensor, size in (("starts", starts, len(query)), ("sinks", sinks, query.shape[1])):
        if tensor is not None and (tensor.shape != (size,) or tensor.device != query.device):
            raise ValueError(f"{name} must be [{size}] on {query.device}; got {tuple(tensor.shape)} on {tensor.device}")
    if starts is not None and starts.dtype != torch.int64:
        raise TypeError(f"starts must be int64; got {starts.dtype}")
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
        raise ValueError(f"window must be an integer >= 1 or None; got {window!r}")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be > 0 or None; got {softcap!r}")
    return query, segments, query.shape[2] ** -0.5 if scale is None else float(scale), starts, window, softcap, sinks


def _check_segment(name: str, query, segment) -> None:
    keys, values, groups = segment
    if keys.ndim != 4 or values.ndim != 4 or keys.shape[:3] != values.shape[:3] or keys.shape[3] != query.shape[2]:
        raise ValueError(
            f"{name} must be keys [G, Hkv, T, {query.shape[2]}] and values [G, Hkv, T, Dv];"
            f" got {tuple(keys.shape)} and {tuple(values.shape)}"
        )
    for tensor in (keys, values):
        if tensor.dtype != query.dtype or tensor.device != query.device:
            raise ValueError(f"{name} must be {query.dtype} on {query.device}; got {tensor.dtype} on {tensor.device}")
        if tensor.shape[2] and tensor.stride(3) != 1:
            raise ValueError(f"{name} must have stride 1 last; got {_layout(tensor)}")
    if keys.shape[1] == 0 or query.shape[1] % keys.shape[1]:
        raise ValueError(f"{name}: {query.shape[1]} query heads must be a multiple of its {keys.shape[1]} KV heads")
    if groups is None and len(keys) < len(query):
        raise ValueError(f"{name} without groups needs an entry per row: {len(query)}; it has {len(keys)}")
    if groups is not None and (len(groups.group_of_row) != len(query) or len(groups.first) != len(keys) + 1):
        raise ValueError(
            f"{name}.groups must group {len(query)} rows over {len(keys)} entries;"
            f" it groups {len(groups.group_of_row)} over {len(groups.first) - 1}: use group_rows(...)"
        )


def _layout(tensor) -> str:
    return f"shape {tuple(tensor.shape)}, strides {tensor.stride()}"
