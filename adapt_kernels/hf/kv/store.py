"""What every KV store of plan "full" can do, whatever its layout."""

from abc import ABC, abstractmethod

import torch


class KVStore(ABC):
    """The KV of one layer for the slots of a call. Positions *seen* and positions *held* are different numbers.

    seen: positions appended so far, prompt included: where the next token stands. held: positions that attention still
    reads, [0, held) in the order in which they came. Until `keep` drops some, both are the same. The model's own
    positions go on counting; what is held is neither rotated again nor renumbered.
    """

    seen: int

    @property
    @abstractmethod
    def held(self) -> int:
        """Positions per slot that are held."""

    @abstractmethod
    def append(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write [slots, heads, q, head_dim] behind what is held; returns what attention reads."""

    @abstractmethod
    def reorder(self, index: torch.Tensor) -> None:
        """Slot i becomes what slot index[i] was; index int64 on the CPU, of any length, repeats allowed."""

    @abstractmethod
    def keep(self, index: torch.Tensor) -> None:
        """Hold only the positions index [slots, k], or [slots, heads, k], int64, ascending, of [0, held); in place.

        Keeping everything changes nothing, to the last bit. Host syncs: two. Raises ValueError for any other index.
        """

    @abstractmethod
    def crop(self, length: int) -> None:
        """Hold the first `length` positions of what is held; negative: give so many of the last ones back.

        They count as never seen. Raises ValueError for more than is held.
        """

    @abstractmethod
    def read(self, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of all that the given slots [n] int64 hold: keys and values, [n, heads, held, head_dim]."""

    @abstractmethod
    def counted(self, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of all slots from held position `start` on, which lies behind a prompt stored apart."""

    @abstractmethod
    def release(self) -> None:
        """Give all memory back; the store is empty afterwards."""

    @abstractmethod
    def detach(self):
        """A plain `DynamicLayer` that holds the same; the store is empty afterwards."""


def checked_index(index: torch.Tensor, slots: int, heads: int, held: int) -> torch.Tensor:
    """An index for `KVStore.keep` as [slots, 1 or heads, k]."""
    shape = tuple(index.shape)
    if index.dtype != torch.int64 or shape[:-1] not in ((slots,), (slots, heads)):
        raise ValueError(
            f"index must be int64 of shape [{slots}, k] or [{slots}, {heads}, k]; got {index.dtype} {shape}"
        )
    index = index[:, None] if index.ndim == 2 else index
    bounds = torch.nn.functional.pad(index, (1, 0), value=-1)
    if not bool((bounds.diff(dim=-1) > 0).all() & (bounds < held).all()):
        raise ValueError(f"index must hold ascending positions of the {held} that are held, in [0, {held})")
    return index
