"""How many KV positions rows get, and when there is not enough memory for what was asked."""

from collections import deque
from copy import copy

import torch

_FIRST_GUESS = 64  # new tokens of a fast row, before any call has shown how long they are
_REMEMBERED = 1024
_QUANTILE = 0.95
_NEARLY = 0.75


class RecentLengths:
    """New tokens of the latest finished rows of the fast mode; shared by the calls of one model."""

    def __init__(self):
        self._lengths: deque[int] = deque(maxlen=_REMEMBERED)

    def add(self, lengths: list[int]) -> None:
        self._lengths.extend(lengths)

    def kv_tokens(self) -> int:
        """The 95th percentile, or a first guess."""
        lengths = sorted(self._lengths)
        return lengths[min(len(lengths) - 1, int(_QUANTILE * len(lengths)))] if lengths else _FIRST_GUESS


class Allotment:
    """KV positions per row of one call: the prompt, `early` for every row, then doubling, to the most a row can need
    where that is nearly reached: a last step of few positions would copy all of them once more.

    kv_tokens [M + 1] int64: early positions by mode, the last entry for rows in no mode. Modes without `kv_tokens` of
    their own get what fast rows lately needed.
    """

    def __init__(self, modes, recent: RecentLengths, prompt_length: int, most_new: int):
        self._modes, self._prompt, self._most = modes, prompt_length, max(most_new, 1)
        learnt = min(recent.kv_tokens(), self._most)
        given = [modes[name].kv_tokens for name in modes]
        self.early = min(given[0] or learnt, self._most)
        self.kv_tokens = torch.tensor([tokens or learnt for tokens in given] + [learnt])
        self._late = 0

    def behind(self, prompt_length: int) -> "Allotment":
        """The same for rows that hold a prompt of so many positions."""
        moved = copy(self)
        moved._prompt = prompt_length
        return moved

    def reserve(self, present: list[int]) -> None:
        """Late positions start with the largest explicit `kv_tokens` among the modes of the living rows."""
        given = [self._modes[self._modes.names[mode]].kv_tokens or 0 for mode in present if mode >= 0]
        self._late = max(given, default=0)

    def capacity(self, length: int) -> int:
        """Positions of a buffer that must hold `length` of them: early, or the next doubling."""
        new = length - self._prompt
        if new <= self.early:
            return self._prompt + self.early
        doubled = self.early
        while doubled < new:
            doubled *= 2
        doubled = self._most if doubled >= _NEARLY * self._most else doubled
        return self._prompt + max(new, min(max(doubled, self._late), self._most))

    def check_memory(self, forced_modes, position_bytes: int, device) -> None:
        """Raise ValueError if the explicit `kv_tokens` of all rows cannot fit.

        forced_modes [rows] int64: a row the model decides for (-1) may take the mode with the largest one.
        """
        given = [self._modes[name].kv_tokens or 0 for name in self._modes]
        if not any(given) or not position_bytes:
            return
        by_mode = torch.tensor(given + [max(given)])
        needed = position_bytes * int((by_mode[forced_modes] + self._prompt).sum())
        available = available_bytes(device)
        if available is not None and needed > available:
            raise ValueError(
                f"kv_tokens={max(given)} asks for {needed} bytes of KV cache ({len(forced_modes)} rows,"
                f" {position_bytes} bytes per position), but {available} bytes are available on {device}:"
                " lower Mode.kv_tokens (None lets it grow as needed) or the number of rows"
            )


def available_bytes(device) -> int | None:
    """Memory that can still be allocated on a device; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
