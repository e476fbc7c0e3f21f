"""Means of a signal over the last steps of each row."""

from collections.abc import Iterable

import torch


class Windows:
    """A ring of the last values per row and windowed register; rows keep theirs when slots move."""

    def __init__(self, registers: Iterable[tuple[str, int]], rows: int, device):
        self._rings = {
            (name, window): torch.full((rows, window), float("nan"), device=device)
            for name, window in registers
            if window > 1
        }
        self._seen = {key: torch.zeros(rows, dtype=torch.int64, device=device) for key in self._rings}

    def push(self, name: str, window: int, value: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The mean [slots] over the window with `value` [slots] of `rows` [slots] in it; NaN until it is full."""
        if window == 1:
            return value.float()
        ring, seen = self._rings[name, window], self._seen[name, window]
        ring[rows, seen[rows] % window] = value.float()
        seen[rows] += 1
        return ring[rows].mean(1)

    def clone(self) -> "Windows":
        """A snapshot."""
        twin = Windows((), 0, None)
        twin._rings = {key: ring.clone() for key, ring in self._rings.items()}
        twin._seen = {key: seen.clone() for key, seen in self._seen.items()}
        return twin
