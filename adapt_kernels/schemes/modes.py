"""Methods that train the choice of a mode: ADaPT and those it is compared with."""

import math

import torch

from adapt_kernels.advantages import Advantages, adapt_advantages, efficiency_bonus, group_mean
from adapt_kernels.schemes.groups import Groups, mode_share
from adapt_kernels.schemes.rollouts import Rollouts
from adapt_kernels.schemes.settings import SchemeSettings
from adapt_kernels.schemes.state import State
from adapt_kernels.schemes.table import Segment, scheme


def adapt(rollouts: Rollouts, settings: SchemeSettings, scheme: str) -> Advantages:
    """ADaPT (arXiv 2606.19919): the efficiency bonus on the mode token; see `adapt_advantages` for both schemes."""
    bonus = efficiency_bonus(rollouts.correct, rollouts.groups, rollouts.modes, settings.gamma)
    return adapt_advantages(rollouts.outcome, bonus, rollouts.lengths, rollouts.groups, rollouts.modes, scheme)


_ADAPT = {"mode_kind": "cispo", "clip_high": 0.28, "dual_clip": 3.0, "num_modes": (2,), "constants": ("gamma",)}


@scheme(
    "ours, after arXiv 2606.19919", arithmetic=lambda r, s: adapt(r, s, "separate"), margin=0.05, kl_on_mode=False,
    **_ADAPT,
)  # fmt: skip
def separate(rollouts: Rollouts, settings: SchemeSettings, state: State) -> torch.Tensor:
    """outcome; the mode token sees only ADaPT's bonus, the response only correctness within its own mode.

    A KL term (beta) anchors the responses only: the mode token's gradient would else cost the fast mode its answers.
    """
    return rollouts.outcome.double()


@scheme("ADaPT, arXiv 2606.19919", arithmetic=lambda r, s: adapt(r, s, "reference"), uniform_old=True, **_ADAPT)
def reference(rollouts: Rollouts, settings: SchemeSettings, state: State) -> torch.Tensor:
    """outcome; with the bonus placed at the mode token, reward-to-go over mean and std of the group's tokens."""
    return rollouts.outcome.double()


_DEGRPO = ("degrpo_rewards", "degrpo_alpha")


@scheme(
    "Thinkless, arXiv 2505.13379", baseline="mean", mode_mean="sequences", num_modes=(2,), constants=_DEGRPO
)  # fmt: skip
def degrpo(rollouts: Rollouts, settings: SchemeSettings, state: State) -> torch.Tensor:
    """1 right and fast, .5 right and slow, -1 wrong or malformed.

    The loss has one mean over the mode tokens, times alpha, and one over the response tokens.
    """
    fast, slow, wrong = settings.degrpo_rewards
    return torch.where(rollouts.correct & rollouts.valid, torch.where(rollouts.modes == 0, fast, slow), wrong).double()


@scheme(
    "AdaptThink, arXiv 2505.13417", baseline="none", uniform_old=True, loss_type="grpo", num_modes=(2,),
    signals=("reference_accuracy",), constants=("adaptthink_delta",),
)  # fmt: skip
def adaptthink(rollouts: Rollouts, settings: SchemeSettings, state: State) -> torch.Tensor:
    """correct - the reference model's accuracy on this prompt + delta if fast.

    Published with one importance ratio per sequence; here it is one per token, which is the same on policy.
    """
    score = rollouts.correct.double() - rollouts.signal("reference_accuracy")
    return score + settings.adaptthink_delta * (rollouts.modes == 0)


@scheme("AdaCoT, arXiv 2505.11896; penalties ours", num_modes=(2,), constants=("gamma", "adacot_missed", "adacot_over"))
def adacot(rollouts: Rollouts, settings: SchemeSettings, state: State) -> torch.Tensor:
    """outcome - missed if fast where reasoning is needed - over if slow where it is not.

    A prompt needs reasoning where the group's fast accuracy is below gamma (published: labels of a judge model, and a
    critic in place of the group). Its selective loss masking is `mask_mode_token` of the trainer's config.
    """
    groups = Groups(rollouts)
    fast = rollouts.modes == 0
    accurate = group_mean(rollouts.correct.double(), fast, groups.index, groups.count)
    needed = (accurate < settings.gamma)[groups.index]
    slow = ~fast & rollouts.valid
    penalty = settings.adacot_missed * (fast & needed) + settings.adacot_over * (slow & ~needed)
    return rollouts.outcome.double() - penalty


@scheme("ARM, arXiv 2505.20258")
def ada_grpo(rollouts: Rollouts, settings: SchemeSettings, state: State) -> torch.Tensor:
    """outcome (1 + (G / F - 1) (1 + cos(pi progress)) / 2), F of the group's G samples having this mode."""
    decay = 0.5 * (1 + math.cos(math.pi * rollouts.progress))
    return rollouts.outcome.double() * (1 + (1 / mode_share(rollouts) - 1) * decay)


@scheme(
    "AVR, FS-GRPO, arXiv 2604.14568", num_modes=(2, 3),
    constants=("avr_bonus", "avr_penalty", "avr_length", "avr_diversity", "reference_form"),
)  # fmt: skip
def avr(rollouts: Rollouts, settings: SchemeSettings, state: State) -> torch.Tensor:
    """(1 + bonus) clip(300 / length, .3, 1) if right, else penalty, + w (1 - share); -1 if malformed.

    Share is that of the mode among the group's rows that have one, w falls from avr_diversity to 0 by a cosine, and no
    row is rare alone. reference_form: the penalty is scaled by the length too.
    """
    last = torch.tensor([0, 2] if rollouts.num_modes == 2 else [0, 1, 2], device=rollouts.modes.device)
    kind = last[rollouts.modes.clamp(min=0)]
    bonus, penalty = (
        torch.tensor(values, dtype=torch.float64, device=last.device)[kind]
        for values in (settings.avr_bonus, settings.avr_penalty)
    )
    whole = (settings.avr_length / rollouts.lengths.double()).clamp(0.3, 1)
    wrong = penalty * whole if settings.reference_form else penalty
    weight = settings.avr_diversity * 0.5 * (1 + math.cos(math.pi * rollouts.progress))
    rarity = torch.where(Groups(rollouts).size(rollouts.valid) > 1, weight * (1 - mode_share(rollouts)), 0.0)
    return torch.where(rollouts.valid, torch.where(rollouts.correct, (1 + bonus) * whole, wrong) + rarity, -1.0)


@scheme("the coupled baseline, ours", constants=("length_penalty", "length_scale"))
def length_penalty(rollouts: Rollouts, settings: SchemeSettings, state: State) -> torch.Tensor:
    """outcome - lambda length / scale."""
    return rollouts.outcome.double() - settings.length_penalty * rollouts.lengths.double() / settings.length_scale


@scheme("GRPO, arXiv 2402.03300, with TRL's constants", epsilon=1e-4)
def grpo(rollouts: Rollouts, settings: SchemeSettings, state: State) -> torch.Tensor:
    """outcome."""
    return rollouts.outcome.double()


def _mode_level(rollouts: Rollouts, settings: SchemeSettings, state: State) -> torch.Tensor:
    return Groups(rollouts).cell_mean(rollouts.outcome, rollouts.modes)


@scheme(
    "HiPO, arXiv 2509.23967: two segments; its expressions were not found",
    segments={"mode": Segment(_mode_level, "mean")},
)
def hipo(rollouts: Rollouts, settings: SchemeSettings, state: State) -> torch.Tensor:
    """outcome, for the response; the mode token: mean outcome of its mode in the group - mean of the group.

    Published are the two advantages, one by mode and one by row. The boost of the fast mode has no published form and
    is left out.
    """
    return rollouts.outcome.double()
