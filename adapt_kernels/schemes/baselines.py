"""From rewards to advantages: the four baselines, of whole rows and of every token's reward-to-go."""

import torch

from adapt_kernels.advantages import group_mean, group_sum
from adapt_kernels.schemes.groups import Groups
from adapt_kernels.schemes.rollouts import Rollouts

BASELINES = {
    "mean_std": "(r - mean of the group) / (unbiased std + epsilon)",
    "mean": "r - mean of the group",
    "rloo": "r - mean of the group's other rows",
    "none": "r",
}


def centred(reward: torch.Tensor, rollouts: Rollouts, baseline: str, epsilon: float) -> torch.Tensor:
    """[B] float64 from rewards [B]; a row alone in its group gets 0, but for "none"."""
    if baseline == "none":
        return reward
    groups = Groups(rollouts)
    group, count = groups.index, groups.count
    found = reward - group_mean(reward, torch.ones_like(reward, dtype=torch.bool), group, count)[group]
    if baseline == "mean":
        return found
    size = group_sum(torch.ones_like(reward), group, count)
    if baseline == "rloo":
        return found * (size / (size - 1).clamp(min=1))[group]
    variance = group_sum(found**2, group, count) / (size - 1).clamp(min=1)
    return found / (variance.sqrt() + epsilon)[group]


def reward_to_go(reward: torch.Tensor, placed, lengths: torch.Tensor) -> torch.Tensor:
    """[B, T] float64: what is earned from each token on. reward [B] is earned at the last token.

    placed: (rows, positions, values), [K] each, earned at those tokens. Positions from a row's end on count there.
    """
    rows, positions, values = placed
    width = max(int(lengths.max()), 1)
    earned = torch.zeros(len(reward), width, dtype=torch.float64, device=reward.device)
    earned[torch.arange(len(reward), device=reward.device), lengths - 1] = reward
    earned = earned.index_put((rows, torch.minimum(positions, lengths[rows] - 1)), values.double(), accumulate=True)
    inside = torch.arange(width, device=reward.device) < lengths[:, None]
    return torch.where(inside, earned.flip(1).cumsum(1).flip(1), 0.0)


def centred_tokens(to_go: torch.Tensor, rollouts: Rollouts, baseline: str, epsilon: float) -> torch.Tensor:
    """[B, T] float64: the baselines over all tokens of a group (its std is that of all of them), 0 outside rows."""
    if baseline == "none":
        return to_go
    groups, lengths = Groups(rollouts), rollouts.lengths.double()
    group, count = groups.index, groups.count
    inside = torch.arange(to_go.shape[1], device=to_go.device) < rollouts.lengths[:, None]
    tokens, total = group_sum(lengths, group, count)[group], group_sum(to_go.sum(1), group, count)[group]
    mean = total / tokens
    if baseline == "rloo":
        others = tokens - lengths
        mean = torch.where(others > 0, (total - to_go.sum(1)) / others.clamp(min=1), mean)
    found = torch.where(inside, to_go - mean[:, None], 0.0)
    if baseline != "mean_std":
        return found
    squares = group_sum((found**2).sum(1), group, count)[group] / tokens
    return found / (squares.sqrt() + epsilon)[:, None]
