"""Rewards that read how sure the policy was."""

import torch

from adapt_kernels.schemes.groups import by_band, thirds
from adapt_kernels.schemes.rollouts import Rollouts
from adapt_kernels.schemes.settings import SchemeSettings
from adapt_kernels.schemes.state import State, moving_average
from adapt_kernels.schemes.table import scheme


@scheme("PEAR, arXiv 2510.08026", signals=("entropy_think", "entropy_answer"), constants=("pear_alpha", "pear_format"))
def pear(rollouts: Rollouts, settings: SchemeSettings, state: State) -> torch.Tensor:
    """min(1, 1 - max(0, H_think - alpha H_answer)) if right, else pear_format."""
    excess = rollouts.signal("entropy_think") - settings.pear_alpha * rollouts.signal("entropy_answer")
    return torch.where(rollouts.correct & rollouts.valid, 1 - excess.clamp(min=0), settings.pear_format)


# Of the hard, the medium and the easy band.
_TOLERANCE, _KAPPA, _TAU, _CAP = (0.35, 0.25, 0.15), (4, 3, 2), (3, 2.5, 2), (1.2, 1, 1)


def _triggers(rollouts: Rollouts, settings: SchemeSettings) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(band, trigger windows beyond the band's mean, the band's tolerance), [B] each."""
    count, band = rollouts.signal("triggers"), thirds(rollouts)
    if settings.reference_form:
        return torch.full_like(band, 2), count, torch.ones_like(count)
    means = [count[band == kind].mean().round() if (band == kind).any() else count.new_zeros(()) for kind in range(3)]
    target = torch.stack(means)[band]
    return band, count - target, (by_band(band, _TOLERANCE) * target).clamp(min=1)


def _kl_weight(rollouts: Rollouts, settings: SchemeSettings, state: State) -> torch.Tensor:
    band, beyond, tolerance = _triggers(rollouts, settings)
    relief = 1 / (1 + torch.exp(-(beyond - tolerance).clamp(min=0) / by_band(band, _TAU))) >= 0.5
    log_beta = state.setdefault("ares_log_beta", torch.zeros(3, dtype=torch.float64)).to(band.device)
    weight = log_beta.exp()[band]
    divergence = rollouts.given("kl")
    if divergence is not None:
        _steer_kl(band, divergence.double(), settings, state)
    return torch.where((band == 2) & ~rollouts.correct & relief, 0.67 * weight, weight)


def _steer_kl(band, divergence, settings: SchemeSettings, state: State) -> None:
    """beta of a band follows how far its KL is from the target, every 100 batches."""
    batches = state.get("ares_batches", torch.zeros((), dtype=torch.float64)) + 1
    state["ares_batches"] = batches
    log_beta = state["ares_log_beta"].clone()
    for kind in range(3):
        if (band == kind).any():
            excess = divergence[band == kind].mean() / settings.ares_kl_target - 1
            mean = moving_average(state, f"ares_kl_{kind}", excess, 0.97)
            if int(batches) % 100 == 0:
                log_beta[kind] += 0.05 * float(mean.clamp(-0.2, 0.2))
    state["ares_log_beta"] = log_beta


@scheme(
    "ARES, AEPO, shawn0728/ARES", stateful=True, signals=("triggers",), optional=("kl",), kl_weight=_kl_weight,
    constants=("ares_kl_target", "reference_form"),
)  # fmt: skip
def ares(rollouts: Rollouts, settings: SchemeSettings, state: State) -> torch.Tensor:
    """c + e. N trigger windows, D = N - round(mean N of the band), m = max(1, {.15, .25, .35} mean), pen(x) = -min(C,
    C huber(x) / (m + kappa)), C = alpha {1, 1, 1.2}. Right: easy pen((D - m)+), medium pen((|D| - m)+), hard
    C s((D + m) / tau) from D = -m on, else half of pen(-D - m); wrong: {.6, .8, 1} C s((D - m)+ / tau). The KL term is
    weighted by band.

    alpha of a band starts at .5 and follows D. reference_form: every row is easy and its target 0.
    """
    band, beyond, margin = _triggers(rollouts, settings)
    alpha = state.setdefault("ares_alpha", torch.full((3,), 0.5, dtype=torch.float64)).to(band.device)
    kappa, tau, cap = by_band(band, _KAPPA), by_band(band, _TAU), alpha[band] * by_band(band, _CAP)

    def penalty(distance):
        distance = distance.clamp(min=0)
        huber = torch.where(distance <= kappa, distance**2 / (2 * kappa), distance - kappa / 2)
        return cap * huber / (margin + kappa)

    easy, medium = -penalty(beyond - margin).minimum(cap), -penalty(beyond.abs() - margin).minimum(cap)
    long = cap * torch.sigmoid((beyond + margin) / tau)
    hard = torch.where(beyond >= -margin, long, -(penalty(-beyond - margin) / 2).minimum(cap))
    right = torch.where(band == 2, easy, torch.where(band == 1, medium, hard))
    wrong = by_band(band, (1, 0.8, 0.6)) * cap * torch.sigmoid((beyond - margin).clamp(min=0) / tau)
    _follow(state, alpha, band, beyond, settings)
    return rollouts.correct + torch.where(rollouts.correct, right, wrong)


def _follow(state: State, alpha, band, beyond, settings: SchemeSettings) -> None:
    if settings.reference_form:
        return
    moved = alpha.clone()
    for kind in range(3):
        if (band == kind).any():
            moved[kind] = (alpha[kind] + 0.05 * beyond[band == kind].mean()).clamp(0, 2)
    state["ares_alpha"] = moved
