"""Statistics of a row's group, given back to each of its rows."""

import torch

from adapt_kernels.advantages import group_mean, group_sum
from adapt_kernels.schemes.rollouts import Rollouts


class Groups:
    """The groups of a batch; results are [B] float64, one for each row. `counted` [B] bool; None = every row."""

    def __init__(self, rollouts: Rollouts):
        distinct, self.index = rollouts.groups.unique(return_inverse=True)
        self.count = len(distinct)

    def mean(self, values, counted=None) -> torch.Tensor:
        """0 where no row counts."""
        return group_mean(values.double(), self._counted(counted), self.index, self.count)[self.index]

    def size(self, counted=None) -> torch.Tensor:
        return group_sum(self._counted(counted).double(), self.index, self.count)[self.index]

    def std(self, values, counted=None) -> torch.Tensor:
        """The unbiased one; 0 for a single row."""
        counted = self._counted(counted)
        centred = torch.where(counted, values.double() - self.mean(values, counted), 0.0)
        squares = group_sum(centred**2, self.index, self.count)
        return (squares / (group_sum(counted.double(), self.index, self.count) - 1).clamp(min=1)).sqrt()[self.index]

    def highest(self, values) -> torch.Tensor:
        least = torch.full((self.count,), -torch.inf, dtype=torch.float64, device=values.device)
        return least.scatter_reduce(0, self.index, values.double(), "amax")[self.index]

    def lowest(self, values) -> torch.Tensor:
        return -self.highest(-values.double())

    def cell_mean(self, values, cell) -> torch.Tensor:
        """The mean over the rows of the group that also share `cell` [B]."""
        distinct, kind = cell.unique(return_inverse=True)
        both, counted = self.index * len(distinct) + kind, torch.ones_like(kind, dtype=torch.bool)
        return group_mean(values.double(), counted, both, self.count * len(distinct))[both]

    def first_rows(self) -> torch.Tensor:
        """[G] int64: one row of each group."""
        rows = torch.arange(len(self.index), device=self.index.device)
        last = torch.zeros(self.count, dtype=torch.int64, device=rows.device)
        return last.scatter_reduce(0, self.index, rows, "amin", include_self=False)

    def _counted(self, counted) -> torch.Tensor:
        return torch.ones_like(self.index, dtype=torch.bool) if counted is None else counted


def accuracy(rollouts: Rollouts) -> torch.Tensor:
    """[B] float64: the share of right answers in the row's group."""
    return Groups(rollouts).mean(rollouts.correct)


def bands(values: torch.Tensor, *cuts: float) -> torch.Tensor:
    """[B] int64: how many of the cuts, rising, each value reaches."""
    return torch.stack([values >= cut for cut in cuts]).sum(0)


def by_band(band: torch.Tensor, values) -> torch.Tensor:
    """[B] float64: the band's own entry of `values`."""
    return torch.as_tensor(values, dtype=torch.float64, device=band.device)[band]


def mode_share(rollouts: Rollouts) -> torch.Tensor:
    """[B] float64: the share of each row's mode among the rows of its group that have one; 1 for those without."""
    distinct, group = rollouts.groups.unique(return_inverse=True)
    valid, count = rollouts.valid, len(distinct)
    cell = group * rollouts.num_modes + rollouts.modes.clamp(min=0)
    own = group_sum(valid.double(), cell, count * rollouts.num_modes)[cell]
    return torch.where(valid, own / group_sum(valid.double(), group, count)[group].clamp(min=1), 1.0)


def thirds(rollouts: Rollouts) -> torch.Tensor:
    """[B] int64: 2 = easy (at least two thirds of the group right), 1 = medium (a third), 0 = hard."""
    return bands(Groups(rollouts).mean(rollouts.correct), 1 / 3, 2 / 3)
