"""Rewards that make right answers shorter."""

import math

import torch

from adapt_kernels.schemes.groups import Groups, accuracy, by_band
from adapt_kernels.schemes.rollouts import Rollouts
from adapt_kernels.schemes.settings import SchemeSettings, now
from adapt_kernels.schemes.state import State
from adapt_kernels.schemes.table import scheme


def laser_base(rollouts: Rollouts) -> torch.Tensor:
    """[B] float64: 1 right, -.5 wrong, -1 malformed."""
    return torch.where(rollouts.valid, torch.where(rollouts.correct, 1.0, -0.5).double(), -1.0)


def length_share(rollouts: Rollouts, batch_wide: bool = False) -> torch.Tensor:
    """Kimi's, [B] float64: .5 for the group's shortest row to -.5 for its longest; not above 0 for a wrong one.

    0 where all are as long. batch_wide: over the whole batch instead.
    """
    one = torch.zeros_like(rollouts.groups)
    groups = Groups(rollouts._replace(groups=one) if batch_wide else rollouts)
    least, most = groups.lowest(rollouts.lengths), groups.highest(rollouts.lengths)
    share = 0.5 - (rollouts.lengths - least) / (most - least).clamp(min=1)
    share = torch.where(most > least, share, 0.0)
    return torch.where(rollouts.correct, share, share.clamp(max=0))


@scheme("LASER, arXiv 2505.15612", clip_high=0.28, constants=("laser_length", "laser_bonus"))
def laser(rollouts: Rollouts, settings: SchemeSettings, state: State) -> torch.Tensor:
    """1 right (+ .5 up to laser_length tokens), -.5 wrong, -1 malformed."""
    base = laser_base(rollouts)
    return base + settings.laser_bonus * ((base == 1) & (rollouts.lengths <= settings.laser_length))


@scheme("Arora and Zanette, arXiv 2502.04463, as in LASER's code", constants=("length_norm_alpha",))
def length_norm(rollouts: Rollouts, settings: SchemeSettings, state: State) -> torch.Tensor:
    """c (1 - alpha s(z(L))), z over the group's right answers (mean 0 and std 1 for a single one)."""
    groups, right = Groups(rollouts), rollouts.correct & rollouts.valid
    single = groups.size(right) == 1
    mean = torch.where(single, 0.0, groups.mean(rollouts.lengths, right))
    std = torch.where(single, 1.0, groups.std(rollouts.lengths, right))
    share = torch.sigmoid((rollouts.lengths - mean) / (std + 1e-6))
    return right * (1 - settings.length_norm_alpha * share)


@scheme("Kimi k1.5, arXiv 2501.12599, as in LASER's code", constants=("kimi_weight",))
def kimi_length(rollouts: Rollouts, settings: SchemeSettings, state: State) -> torch.Tensor:
    """LASER's 1, -.5, -1, + .4 lam if right, + .4 min(0, lam) if wrong; lam = .5 - (L - min) / (max - min)."""
    base = laser_base(rollouts)
    share = length_share(rollouts._replace(correct=base == 1))
    return base + settings.kimi_weight * share


@scheme("Long-Short, arXiv 2505.11827", constants=("reference_form",))
def long_short(rollouts: Rollouts, settings: SchemeSettings, state: State) -> torch.Tensor:
    """correct + lam (Kimi's, of the group) - 1 if malformed (published + 1 if not, which is the same to a group).

    Lengths are tokens, published characters. reference_form: lam over the whole batch.
    """
    malformed = (~rollouts.valid).double()
    return rollouts.correct + length_share(rollouts, batch_wide=settings.reference_form) - malformed


@scheme("e1, AEC, arXiv 2510.27042", signals=("effort",))
def e1(rollouts: Rollouts, settings: SchemeSettings, state: State) -> torch.Tensor:
    """1 if right and L / mean L of the group <= effort, else 0."""
    relative = rollouts.lengths / Groups(rollouts).mean(rollouts.lengths)
    return (rollouts.correct & (relative <= rollouts.signal("effort"))).double()


@scheme(
    "Train Long, Think Short, arXiv 2508.08940; shape, weight and decay ours",
    constants=("train_long_budget", "train_long_weight"),
)
def train_long(rollouts: Rollouts, settings: SchemeSettings, state: State) -> torch.Tensor:
    """correct + weight * triangle(L): L / B up to the budget B, (2B - L) / B up to 2B, then 0; B falls by steps."""
    relative = rollouts.lengths.double() / now(settings.train_long_budget)
    return rollouts.correct + settings.train_long_weight * torch.minimum(relative, 2 - relative).clamp(min=0)


_PI = 3.1416  # as published


def _budgets(rollouts: Rollouts, settings: SchemeSettings) -> torch.Tensor:
    own = rollouts.given("budget")
    return by_band(rollouts.modes.clamp(min=0), settings.hbpo_budgets) if own is None else own.double()


def _ceiling(tokens: torch.Tensor, settings: SchemeSettings) -> torch.Tensor:
    return 4 * torch.cos(_PI * tokens / (2 * settings.max_length))


def _below_the_ceiling(rollouts: Rollouts, settings: SchemeSettings, state: State) -> torch.Tensor:
    budget = _budgets(rollouts, settings)
    kind = budget if rollouts.given("budget") is not None else torch.where(rollouts.valid, budget, -1.0)
    mean = Groups(rollouts).cell_mean(hbpo(rollouts, settings, state), kind)
    bracket = torch.where(kind < 0, 0.0, mean - _ceiling(budget, settings))
    return 2 * bracket if settings.reference_form else bracket


@scheme(
    "HBPO, arXiv 2507.15844", offset=_below_the_ceiling, clip_high=0.28, per_mode="hbpo_budgets", optional=("budget",),
    constants=("hbpo_budgets", "max_length", "reference_form"),
)  # fmt: skip
def hbpo(rollouts: Rollouts, settings: SchemeSettings, state: State) -> torch.Tensor:
    """min(f1, f2) if right and L <= Lmax, else 0; -1 malformed. f2 = 4 cos(pi b / 2Lmax), f1 = 4 cos(pi L / 2Lmax) -
    |L - b| / Lmax; the advantage + (mean of r in the budget's subgroup - f2). The budget b is the mode's, or a signal.

    reference_form: that bracket twice.
    """
    lengths, budget = rollouts.lengths.double(), _budgets(rollouts, settings)
    found = _ceiling(lengths, settings) - (lengths - budget).abs() / settings.max_length
    right = rollouts.correct & (lengths <= settings.max_length)
    reward = torch.where(right, torch.minimum(found, _ceiling(budget, settings)), 0.0)
    return torch.where(rollouts.valid, reward, -1.0)


@scheme(
    "AdaCtrl, arXiv 2505.18822", clip_high=0.28, num_modes=(2,),
    constants=("adactrl_easy", "adactrl_length", "adactrl_format", "reference_form"),
)  # fmt: skip
def adactrl(rollouts: Rollouts, settings: SchemeSettings, state: State) -> torch.Tensor:
    """+-1 + .5 len + .5 fmt: fmt 1 if the mode is the group's (fast where accuracy > .625), 0 the other, -1 none; len,
    if right and the mode is the group's: (1 + cos(pi L / longest)) / 2 where fast, (1 - cos) / 2 where slow.

    reference_form: len of wrong answers too. Published with overlong_buffer=4096 of max_length=24576.
    """
    easy = accuracy(rollouts) > settings.adactrl_easy
    matches = rollouts.valid & ((rollouts.modes == 0) == easy)
    cosine = torch.cos(math.pi * rollouts.lengths.double() / Groups(rollouts).highest(rollouts.lengths))
    length = torch.where(matches, torch.where(easy, 1 + cosine, 1 - cosine) / 2, 0.0)
    if not settings.reference_form:
        length = length * rollouts.correct
    form = matches.double() - (~rollouts.valid).double()
    outcome = torch.where(rollouts.correct, 1.0, -1.0).double()
    return outcome + settings.adactrl_length * length + settings.adactrl_format * form


@scheme(
    "Apriel-Reasoner, ServiceNow/PipelineRL; gamma and buffer ours", signals=("finished",),
    constants=("apriel_gamma", "apriel_failure", "apriel_buffer", "max_length"),
)  # fmt: skip
def apriel(rollouts: Rollouts, settings: SchemeSettings, state: State) -> torch.Tensor:
    """1 right, -.5 wrong, -1 unfinished, + scale ((max - buffer) - L) / buffer in the last `buffer` tokens; scale =
    accuracy^gamma for a right answer, 1 for others."""
    lengths, finished = rollouts.lengths.double(), rollouts.signal("finished") != 0
    right = rollouts.correct & finished
    base = torch.where(finished, torch.where(right, 1.0, -0.5).double(), -1.0)
    start = settings.max_length - settings.buffer
    inside = (lengths > start) & (lengths <= settings.max_length)
    penalty = torch.where(inside, (start - lengths) / settings.buffer, 0.0)
    relaxed = torch.where(right, accuracy(rollouts) ** settings.apriel_gamma, settings.apriel_failure)
    return base + penalty * torch.where(~finished & (lengths >= settings.max_length), 1.0, relaxed)
