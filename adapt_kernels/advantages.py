"""ADaPT's rewards and advantages: the bonus on the mode token, and one advantage for it and one for the rest.

Source: ADaPT (arXiv 2606.19919), its efficiency reward and its group-normalised reward-to-go, in closed form.
"""

from typing import NamedTuple

import torch

_SCHEMES = ("separate", "reference")
_EPSILON = 1e-6


class Advantages(NamedTuple):
    """Advantages of B sequences, float32: `mode` [B] for the mode token, `rest` [B] for every later token.

    answer [B], where there is one: for later tokens from `answer_start` [B] on. tokens [B, T], where there is one: of
    every token, in the place of all these (`rest` is then the last token's). kl_weight [B], where there is one: of the
    rows' KL term.
    """

    mode: torch.Tensor
    rest: torch.Tensor
    lengths: torch.Tensor
    answer: torch.Tensor | None = None
    answer_start: torch.Tensor | None = None
    tokens: torch.Tensor | None = None
    kl_weight: torch.Tensor | None = None

    def expand(self, num_tokens: int) -> torch.Tensor:
        """[B, num_tokens] float32: `mode` at position 0, `rest` after it, 0 from each sequence's length on."""
        position = torch.arange(num_tokens, device=self.mode.device)
        whole = torch.where(position == 0, self.mode[:, None], self.rest[:, None])
        if self.answer is not None and self.answer_start is not None:
            within = position >= self.answer_start[:, None].clamp(min=1)
            whole = torch.where(within, self.answer[:, None], whole)
        if self.tokens is not None:
            width = min(num_tokens, self.tokens.shape[1])
            whole = torch.nn.functional.pad(self.tokens[:, :width], (0, num_tokens - width))
        return whole.masked_fill(position >= self.lengths[:, None], 0.0)


def efficiency_bonus(correct, groups, modes, gamma: float = 0.5) -> torch.Tensor:
    """The reward ADaPT adds to the mode token of slow samples, float32 [B].

        f, s = mean of `correct` over the fast and over the slow samples of the group (0 where there are none)
        bonus = -(0.5 (f - gamma) + 0.5 (f - s)) for slow samples, 0 for fast ones

    Args:
        correct: [B] bool or numbers, the graded answers (raw accuracy, not the shaped reward).
        groups: [B] integers of any value; samples of one prompt share one.
        modes: [B] integers: 0 = fast, 1 = slow. Others (-1 = none) get no bonus and count for neither mean.
        gamma: the accuracy asked of the fast mode; higher favours slow.

    No randomness; a sort of the groups (one host sync on CUDA). Raises ValueError or TypeError for other shapes.
    """
    correct, modes, group, num_groups = _samples(groups, modes, correct=correct)
    fast, slow = modes == 0, modes == 1
    fast_mean = group_mean(correct, fast, group, num_groups)
    slow_mean = group_mean(correct, slow, group, num_groups)
    bonus = -(0.5 * (fast_mean - gamma) + 0.5 * (fast_mean - slow_mean))
    return torch.where(slow, bonus[group], 0.0).float()


def adapt_advantages(outcome, mode_bonus, lengths, groups, modes, scheme: str = "separate") -> Advantages:
    """One advantage for each sequence's mode token and one for its other tokens.

    scheme="reference" is ADaPT's released arithmetic: reward-to-go G (outcome o at the last token, bonus b at token 0
    of slow samples), centred and scaled by mean and population std of G over all tokens of the group:

        N = sum L;  mu = (sum L o + sum b) / N;  sd = std;  rest = (o - mu) / (sd + 1e-6);  mode = (o + b - mu) / (...)
        a slow sample of length 1 has G = b: the bonus overwrites the outcome there

    scheme="separate": the mode token sees only the bonus, the response only correctness within its own mode:

        mode = (b - mean b) / (std b + 1e-6) over the group;  rest = o - mean of o over the group's same mode

    Args:
        outcome: [B] numbers, each sequence's reward.
        mode_bonus: [B] numbers, as `efficiency_bonus` gives.
        lengths: [B] integers >= 1, tokens of each response, the mode token included.
        groups: [B] integers of any value; samples of one prompt share one.
        modes: [B] integers, 0 = fast, 1 = slow.
        scheme: "separate" or "reference".

    Float64 inside. No randomness; a sort of the groups (one host sync on CUDA). Raises ValueError or TypeError for
    other shapes, values or schemes.
    """
    if scheme not in _SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(map(repr, _SCHEMES))}; got {scheme!r}")
    outcome, modes, group, num_groups = _samples(groups, modes, outcome=outcome)
    bonus, lengths = _column("mode_bonus", mode_bonus, modes), _column("lengths", lengths, modes)
    if lengths.device.type == "cpu" and bool((lengths < 1).any()):
        raise ValueError(f"lengths must be at least 1 (the mode token counts); got {lengths.min().item():g}")
    if scheme == "reference":
        mode, rest = _pooled(outcome, bonus, lengths, modes, group, num_groups)
    else:
        mode, rest = _separate(outcome, bonus, modes, group, num_groups)
    return Advantages(mode.float(), rest.float(), lengths.long())


def _pooled(outcome, bonus, lengths, modes, group, num_groups):
    overwritten = (lengths == 1) & (modes == 1)
    first = torch.where(overwritten, bonus, outcome + bonus)
    later = lengths - 1
    total = group_sum(lengths, group, num_groups)
    mean = (group_sum(first + later * outcome, group, num_groups) / total)[group]
    # Around the mean, not from E2 - mean^2: that loses all digits where rewards hardly differ.
    squares = (first - mean) ** 2 + later * (outcome - mean) ** 2
    scale = ((group_sum(squares, group, num_groups) / total).sqrt() + _EPSILON)[group]
    return (first - mean) / scale, (outcome - mean) / scale


def _separate(outcome, bonus, modes, group, num_groups):
    everyone = torch.ones_like(modes, dtype=torch.bool)
    centred = bonus - group_mean(bonus, everyone, group, num_groups)[group]
    scale = group_mean(centred**2, everyone, group, num_groups).sqrt() + _EPSILON
    distinct, cell = modes.unique(return_inverse=True)
    cell = group * len(distinct) + cell
    rest = outcome - group_mean(outcome, everyone, cell, num_groups * len(distinct))[cell]
    return centred / scale[group], rest


def _samples(groups, modes, **values):
    ((name, value),) = values.items()
    value = torch.as_tensor(value)
    if value.ndim != 1:
        raise ValueError(f"{name} must be [B], one entry per sequence; got shape {tuple(value.shape)}")
    modes = _integers("modes", modes, value)
    _, group = _integers("groups", groups, value).unique(return_inverse=True)
    return value.detach().double(), modes, group, int(group.max()) + 1 if len(group) else 0


def _column(name: str, value, like: torch.Tensor) -> torch.Tensor:
    value = torch.as_tensor(value, device=like.device).detach()
    if value.shape != like.shape:
        raise ValueError(f"{name} must be [B] = {tuple(like.shape)}; got shape {tuple(value.shape)}")
    return value.double()


def _integers(name: str, value, like: torch.Tensor) -> torch.Tensor:
    value = torch.as_tensor(value, device=like.device)
    if value.is_floating_point() or value.is_complex():
        raise TypeError(f"{name} must hold integers; got {value.dtype}")
    if value.shape != like.shape:
        raise ValueError(f"{name} must be [B] = {tuple(like.shape)}; got shape {tuple(value.shape)}")
    return value.long()


def group_sum(values, group, num_groups: int) -> torch.Tensor:
    """[num_groups] float64: the sum of values [B] over each group; group [B] holds 0 .. num_groups - 1."""
    return torch.zeros(num_groups, dtype=torch.float64, device=values.device).index_add(0, group, values)


def group_mean(values, counted, group, num_groups: int) -> torch.Tensor:
    """[num_groups] float64: the mean of the values [B] that are `counted` [B] bool; 0 where a group has none."""
    count = group_sum(counted.double(), group, num_groups)
    return group_sum(torch.where(counted, values, 0.0), group, num_groups) / count.clamp(min=1)
