"""Which row of a call each slot of its batch holds: the only map between the two."""

from typing import overload

import torch


class Slots:
    """The rows that are decoded now, in their order. It does not change: when rows move, others take its place.

    rows: how many the call has. host, index: int64 [slots], the row of each slot, on the CPU and on the device.
    in_order: whether every row is in the slot of its number; tensors are then handed through as they are.
    """

    __slots__ = ("host", "in_order", "index", "rows")

    def __init__(self, rows: int, device, row_of_slot: torch.Tensor | None = None):
        """row_of_slot int64 [slots], None = every row in order."""
        every = torch.arange(rows)
        self.rows, self.host = rows, every if row_of_slot is None else row_of_slot.cpu()
        self.in_order = torch.equal(self.host, every)
        self.index = self.host.to(device, non_blocking=True)

    def __len__(self) -> int:
        return len(self.host)

    def holding(self, row_of_slot: torch.Tensor) -> "Slots":
        """The same call with other rows in its slots."""
        return Slots(self.rows, self.index.device, row_of_slot)

    def row(self, slot) -> int:
        return int(self.host[int(slot)])

    def take(self, per_row: torch.Tensor) -> torch.Tensor:
        """[slots, ...]: the entries of the slots, from [rows, ...]."""
        return per_row if self.in_order else per_row[self.index]

    def put(self, per_row: torch.Tensor, per_slot: torch.Tensor) -> torch.Tensor:
        """per_row [rows, ...] with the entries of the slots replaced by per_slot [slots, ...]."""
        return per_slot if self.in_order else per_row.index_copy(0, self.index, per_slot)

    @overload
    def spread(self, per_slot: torch.Tensor, elsewhere) -> torch.Tensor: ...

    @overload
    def spread(self, per_slot: None, elsewhere) -> None: ...

    def spread(self, per_slot, elsewhere):
        """[rows, ...] from [slots, ...] (None stays None); `elsewhere`, a number or a scalar tensor, for rows that have
        left (None where none can have left)."""
        if self.in_order or per_slot is None:
            return per_slot
        full = per_slot.new_zeros(self.rows, *per_slot.shape[1:])
        if elsewhere is not None:
            full[...] = elsewhere
        return full.index_copy_(0, self.index, per_slot)
