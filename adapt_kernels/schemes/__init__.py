"""How published methods credit the mode token and the response: each one a row of a table.

A row turns a batch into one reward for each sequence; a baseline makes advantages of them, and segments of a sequence
may have rewards of their own. `SCHEMES` holds the rows, `rewards` and `advantages` compute them; sources are named at
each row, constants are fields of `SchemeSettings`.

.. include:: examples.md
"""

from functools import partial

import torch

from adapt_kernels.schemes import modes  # noqa: F401 (they fill the table, these first)

# isort: split
from adapt_kernels.advantages import Advantages
from adapt_kernels.schemes import entropies, graded, lengths, targets  # noqa: F401
from adapt_kernels.schemes.baselines import BASELINES
from adapt_kernels.schemes.goldens import GOLDENS, Golden
from adapt_kernels.schemes.graded import step_rewards
from adapt_kernels.schemes.modes import adapt
from adapt_kernels.schemes.rollouts import SIGNALS, Rollouts, Steps
from adapt_kernels.schemes.settings import Schedule, SchemeSettings
from adapt_kernels.schemes.state import State
from adapt_kernels.schemes.table import SCHEMES, Scheme, Segment, scheme

__all__ = ["BASELINES", "GOLDENS", "SCHEMES", "SIGNALS", "Golden", "Rollouts", "Schedule", "Scheme", "SchemeSettings"]
__all__ += ["Segment", "Steps", "adapt", "advantages", "rewards", "scheme", "step_rewards"]


def rewards(
    name: str, rollouts: Rollouts, settings: SchemeSettings | None = None, state: State | None = None
) -> torch.Tensor:
    """[B] float64: what scheme `name` gives each row, before the baseline.

    state: dict of small float64 tensors that stateful schemes carry from batch to batch, updated in place; None = the
    first batch. No randomness; sorts the groups (host syncs on CUDA). Raises ValueError for an unknown scheme, missing
    signals, values that are not finite, other shapes, or numbers of modes it is not defined for; TypeError for other
    kinds. Integer columns may be of any integer type, `correct` of any that holds 0 and 1.
    """
    return _row(name).rewards(rollouts, settings, state)


def advantages(
    name: str, rollouts: Rollouts, settings: SchemeSettings | None = None, state: State | None = None
) -> Advantages:
    """Advantages of the B rows, float32; `expand(T)` gives those of every token. Otherwise as `rewards`."""
    return _row(name).advantages(rollouts, settings, state)


def _row(name: str) -> Scheme:
    if not isinstance(name, str) or name not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(map(repr, SCHEMES))}; got {name!r}")
    return SCHEMES[name]


degrpo, adaptthink, adacot, ada_grpo, avr, length_penalty, grpo = (
    partial(advantages, name)
    for name in ("degrpo", "adaptthink", "adacot", "ada_grpo", "avr", "length_penalty", "grpo")
)
