"""Tables and vectors of tokens that are written, not drawn."""

import torch

from adapt_kernels.modes import Modes


def either(first, second):
    """[slots] int64, -1 = none, None = none anywhere: the first, or where it has none the second."""
    if first is None or second is None:
        return second if first is None else first
    return torch.where(first >= 0, first, second)


def suffix_table(modes: Modes, device) -> torch.Tensor:
    """[M, longest] int64: the ids forced after each mode's decision, -1 = none."""
    longest = max(map(len, modes.suffixes))
    rows = [list(suffix) + [-1] * (longest - len(suffix)) for suffix in modes.suffixes]
    return torch.tensor(rows, dtype=torch.int64, device=device).reshape(len(modes), longest)
