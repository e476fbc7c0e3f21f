"""How published methods credit the mode token and the response: each one a setting of the same two-segment loss.

A scheme turns the rewards of a batch into one advantage for each sequence's mode token and one for its response, and
says which loss either segment has. Sources are named at each function; constants are fields of `SchemeSettings`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from adapt_kernels.advantages import Advantages, adapt_advantages, efficiency_bonus, group_mean, group_sum

_EPSILON = 1e-6


class Rollouts(NamedTuple):
    """What a scheme sees of B sequences. Rows of one prompt share a number in `groups`; modes index the M modes."""

    outcome: torch.Tensor  # [B] float, the sequence's reward
    correct: torch.Tensor  # [B] bool, graded answer
    lengths: torch.Tensor  # [B] int64, tokens of the response, mode token included
    groups: torch.Tensor  # [B] int64
    modes: torch.Tensor  # [B] int64, 0 = fast
    num_modes: int
    progress: float = 0.0  # share of the training done
    reference_accuracy: torch.Tensor | None = None  # [B] float, of each prompt under the model before training


@dataclass(frozen=True)
class SchemeSettings:
    """Constants of the schemes; the defaults are the published ones (AdaCoT's and the length penalty's are ours).

    gamma: ADaPT's and AdaCoT's accuracy asked of the fast mode.
    degrpo_rewards: of a correct answer in each mode and of a wrong one, DeGRPO; degrpo_alpha: weight of its mode token.
    adaptthink_delta: AdaptThink's bonus for the fast mode.
    adacot_missed, adacot_over: AdaCoT's penalties for not thinking where it is needed and for thinking where it is not.
    avr_bonus, avr_penalty: AVR's, in order of modes (the first and the last with two modes); avr_length: the tokens up
        to which its reward is whole; avr_diversity: its reward for rare modes at the start of the training.
    length_penalty, length_scale: reward lost by a sequence of `length_scale` tokens.
    """

    gamma: float = 0.5
    degrpo_rewards: tuple[float, ...] = (1.0, 0.5, -1.0)
    degrpo_alpha: float = 1e-3
    adaptthink_delta: float = 0.05
    adacot_missed: float = 0.3
    adacot_over: float = 0.3
    avr_bonus: tuple[float, ...] = (0.5, 0.3, 0.0)
    avr_penalty: tuple[float, ...] = (-0.5, -0.2, 0.0)
    avr_length: int = 300
    avr_diversity: float = 0.5
    length_penalty: float = 0.3
    length_scale: float = 1024.0

    def __post_init__(self):
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma must be in [0, 1], the accuracy asked of the fast mode; got {self.gamma}")
        if len(self.degrpo_rewards) != 3:
            raise ValueError(f"degrpo_rewards must be (correct fast, correct slow, wrong); got {self.degrpo_rewards}")
        if len(self.avr_bonus) != 3 or len(self.avr_penalty) != 3:
            raise ValueError("avr_bonus and avr_penalty must have three entries, for AVR's three modes")
        for name in ("degrpo_alpha", "avr_length", "length_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0; got {getattr(self, name)}")


@dataclass(frozen=True)
class Scheme:
    """One method.

    advantages: (Rollouts, SchemeSettings) -> Advantages.
    mode_kind, response_kind: loss of either segment ("ppo", "cispo", "reinforce").
    clip_high, dual_clip: upper clip of the ratio, and its bound where the advantage is negative (None = none).
    uniform_old: a forced mode token's old log-prob is log(1/M), the probability it was forced with; False: the
        policy's own log-prob of it at the rollout, so that forcing leaves no importance weight.
    mode_mean: "tokens": the mode token is one token among all; "sequences": the mode tokens have a mean of their own,
        weighted by `degrpo_alpha`, and the responses another.
    margin: default coefficient of the penalty on the spread of the mode logits.
    loss_type: default normaliser, in TRL's terms.
    num_modes: the numbers of modes it is defined for; None = any.
    """

    advantages: Callable[[Rollouts, SchemeSettings], Advantages]
    mode_kind: str = "ppo"
    response_kind: str = "ppo"
    clip_high: float = 0.2
    dual_clip: float | None = None
    uniform_old: bool = False
    mode_mean: str = "tokens"
    margin: float = 0.0
    loss_type: str = "dapo"
    num_modes: tuple[int, ...] | None = None


def adapt(rollouts: Rollouts, settings: SchemeSettings, scheme: str) -> Advantages:
    """ADaPT (arXiv 2606.19919): the efficiency bonus on the mode token; see `adapt_advantages` for both schemes."""
    bonus = efficiency_bonus(rollouts.correct, rollouts.groups, rollouts.modes, settings.gamma)
    return adapt_advantages(rollouts.outcome, bonus, rollouts.lengths, rollouts.groups, rollouts.modes, scheme)


def degrpo(rollouts: Rollouts, settings: SchemeSettings) -> Advantages:
    """Thinkless, DeGRPO (arXiv 2505.13379): a correct fast answer earns more than a slow one; score minus group mean.

    The loss has one mean over the mode tokens, times alpha, and one over the response tokens.
    """
    fast, slow, wrong = settings.degrpo_rewards
    score = torch.where(rollouts.correct, torch.where(rollouts.modes == 0, fast, slow), wrong).double()
    return _shared(score - _mean(score, rollouts)[_group(rollouts)[0]], rollouts)


def adaptthink(rollouts: Rollouts, settings: SchemeSettings) -> Advantages:
    """AdaptThink (arXiv 2505.13417): accuracy - the reference model's on this prompt + delta if fast; not normalised.

    Published with one importance ratio per sequence; here it is one per token, which is the same on policy.
    """
    if rollouts.reference_accuracy is None:
        raise ValueError("scheme 'adaptthink' needs reference_accuracy, the accuracy before training of each prompt")
    score = rollouts.correct.double() - rollouts.reference_accuracy.double()
    return _shared(score + settings.adaptthink_delta * (rollouts.modes == 0), rollouts)


def adacot(rollouts: Rollouts, settings: SchemeSettings) -> Advantages:
    """AdaCoT (arXiv 2505.11896): penalties for missed and for needless reasoning, then the group's mean and std.

    A prompt needs reasoning where the group's fast accuracy is below gamma (published: labels of a judge model, and a
    critic in place of the group). Its selective loss masking is `mask_mode_token` of the trainer's config.
    """
    group, count = _group(rollouts)
    fast = rollouts.modes == 0
    needed = (group_mean(rollouts.correct.double(), fast, group, count) < settings.gamma)[group]
    penalty = settings.adacot_missed * (fast & needed) + settings.adacot_over * (~fast & ~needed)
    return _normalised(rollouts.outcome.double() - penalty, rollouts)


def ada_grpo(rollouts: Rollouts, settings: SchemeSettings) -> Advantages:
    """ARM, Ada-GRPO (arXiv 2505.20258): a reward counts more the rarer its mode in the group, decaying by a cosine.

    reward * (1 + (G / F - 1) (1 + cos(pi progress)) / 2), F of the group's G samples having this mode; mean and std.
    """
    decay = 0.5 * (1 + math.cos(math.pi * rollouts.progress))
    return _normalised(rollouts.outcome.double() * (1 + (1 / _mode_share(rollouts) - 1) * decay), rollouts)


def avr(rollouts: Rollouts, settings: SchemeSettings) -> Advantages:
    """AVR, FS-GRPO (arXiv 2604.14568): mode bonus or penalty, times a length factor, plus a reward for rare modes.

    (1 + bonus if correct, else penalty) * clip(300 / length, .3, 1) + w (1 - share of the mode in the group), w falling
    from avr_diversity to 0 by a cosine; mean and std of the group.
    """
    last = torch.tensor([0, 2] if rollouts.num_modes == 2 else [0, 1, 2], device=rollouts.modes.device)
    bonus, penalty = (
        torch.tensor(values, dtype=torch.float64, device=last.device)[last[rollouts.modes]]
        for values in (settings.avr_bonus, settings.avr_penalty)
    )
    reward = torch.where(rollouts.correct, 1 + bonus, penalty)
    reward = reward * (settings.avr_length / rollouts.lengths.double()).clamp(0.3, 1)
    rarity = settings.avr_diversity * 0.5 * (1 + math.cos(math.pi * rollouts.progress))
    return _normalised(reward + rarity * (1 - _mode_share(rollouts)), rollouts)


def length_penalty(rollouts: Rollouts, settings: SchemeSettings) -> Advantages:
    """The coupled baseline: reward - lambda * length / scale for the whole sequence, then the group's mean and std."""
    cost = settings.length_penalty * rollouts.lengths.double() / settings.length_scale
    return _normalised(rollouts.outcome.double() - cost, rollouts)


def grpo(rollouts: Rollouts, settings: SchemeSettings) -> Advantages:
    """GRPO (arXiv 2402.03300) with TRL's constants: (o - mean) / (unbiased std + 1e-4) on every token."""
    return _normalised(rollouts.outcome.double(), rollouts, epsilon=1e-4)


SCHEMES = {
    "separate": Scheme(partial(adapt, scheme="separate"), "cispo", "ppo", 0.28, 3.0, margin=0.05, num_modes=(2,)),
    "reference": Scheme(
        partial(adapt, scheme="reference"), "cispo", "ppo", 0.28, 3.0, uniform_old=True, num_modes=(2,)
    ),
    "degrpo": Scheme(degrpo, mode_mean="sequences", num_modes=(2,)),
    "adaptthink": Scheme(adaptthink, uniform_old=True, loss_type="grpo", num_modes=(2,)),
    "adacot": Scheme(adacot, num_modes=(2,)),
    "ada_grpo": Scheme(ada_grpo),
    "avr": Scheme(avr, num_modes=(2, 3)),
    "length_penalty": Scheme(length_penalty),
    "grpo": Scheme(grpo),
}


def _shared(advantage: torch.Tensor, rollouts: Rollouts) -> Advantages:
    return Advantages(advantage.float(), advantage.float(), rollouts.lengths)


def _normalised(reward: torch.Tensor, rollouts: Rollouts, epsilon: float = _EPSILON) -> Advantages:
    group, count = _group(rollouts)
    centred = reward - _mean(reward, rollouts)[group]
    size = group_sum(torch.ones_like(reward), group, count)
    variance = group_sum(centred**2, group, count) / (size - 1).clamp(min=1)
    return _shared(centred / (variance.sqrt() + epsilon)[group], rollouts)


def _mean(values: torch.Tensor, rollouts: Rollouts) -> torch.Tensor:
    group, count = _group(rollouts)
    return group_mean(values, torch.ones_like(values, dtype=torch.bool), group, count)


def _mode_share(rollouts: Rollouts) -> torch.Tensor:
    """[B] float64: the share of each sequence's own mode in its group."""
    group, count = _group(rollouts)
    cell = group * rollouts.num_modes + rollouts.modes
    ones = torch.ones_like(group, dtype=torch.float64)
    own = group_sum(ones, cell, count * rollouts.num_modes)[cell]
    return own / group_sum(ones, group, count)[group]


def _group(rollouts: Rollouts) -> tuple[torch.Tensor, int]:
    distinct, group = rollouts.groups.unique(return_inverse=True)
    return group, len(distinct)
