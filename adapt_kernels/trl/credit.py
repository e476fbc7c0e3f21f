"""From the rewards of a rollout to the advantages of its mode tokens and responses."""

import torch

from adapt_kernels.modes import Modes
from adapt_kernels.schemes import Rollouts
from adapt_kernels.trl.config import ADaPTConfig
from adapt_kernels.trl.finite import check_advantages
from adapt_kernels.trl.rollout import RolloutRows


def verdicts(rewards: torch.Tensor, threshold: float) -> torch.Tensor:
    """[N] 1 for a correct answer, 0 for a wrong one, NaN for one that was not graded; rewards [N]."""
    return torch.where(rewards.isnan(), torch.nan, (rewards >= threshold).to(rewards.dtype))


def credited(
    args: ADaPTConfig,
    modes: Modes,
    everyone: RolloutRows,
    outcome: torch.Tensor,
    correct: torch.Tensor,
    group_size: int,
    progress: float,
    reference_accuracy: torch.Tensor | None,
) -> torch.Tensor:
    """[2, N] float32: advantages of the mode tokens and of the responses of N rows, `group_size` rows a group.

    everyone, outcome [N] and correct [N] (as `verdicts` gives) span all ranks. Rows that were not graded get 0, and
    the others are compared without them. Raises ValueError for rows whose advantage is not finite.
    """
    graded = ~correct.isnan()
    samples = {
        "outcome": outcome,
        "correct": correct == 1,
        "lengths": everyone.drawn,
        "groups": torch.arange(len(correct), device=correct.device) // group_size,
        "modes": everyone.modes,
    }
    if reference_accuracy is not None:
        samples["reference_accuracy"] = reference_accuracy
    chosen = {name: values[graded] for name, values in samples.items()}
    rollouts = Rollouts(**chosen, num_modes=len(modes), progress=progress)
    found = args.method.advantages(rollouts, args.scheme_settings)
    advantages = torch.zeros(2, len(correct), device=correct.device)
    advantages[:, graded] = torch.stack([found.mode, found.rest])
    check_advantages(outcome, advantages, args.scheme)
    return advantages
