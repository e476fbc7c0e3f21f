"""Rewards that need a judgement of each row beside right and wrong, and those placed along a thought."""

import torch

from adapt_kernels.schemes.groups import Groups, by_band
from adapt_kernels.schemes.rollouts import Rollouts, Steps
from adapt_kernels.schemes.settings import SchemeSettings, now
from adapt_kernels.schemes.state import State
from adapt_kernels.schemes.table import scheme


@scheme(
    "ARLCP, ZeweiYu1/ARLCP", baseline="rloo", signals=("reflections",),
    constants=("arlcp_counts", "arlcp_weights", "arlcp_total"),
)  # fmt: skip
def arlcp(rollouts: Rollouts, settings: SchemeSettings, state: State) -> torch.Tensor:
    """1 - w1 s(z(k)) - w2 s(z(L)) if right, else 0; k reflection words, w1 = .05 (k <= 40), .1 (k <= 80) or .15,
    w2 = .2 - w1, z over the group's right answers (std 1 for a single one)."""
    groups, right = Groups(rollouts), rollouts.correct & rollouts.valid
    reflections = rollouts.signal("reflections")

    def share(values):
        std = torch.where(groups.size(right) == 1, 1.0, groups.std(values, right))
        return torch.sigmoid((values - groups.mean(values, right)) / (std + 1e-6))

    beyond = torch.stack([reflections > count for count in settings.arlcp_counts]).sum(0)
    first = by_band(beyond, settings.arlcp_weights)
    second = settings.arlcp_total - first
    return right * (1 - first * share(reflections) - second * share(rollouts.lengths.double()))


@scheme("FAPO, yyDing1/FAPO", clip_high=0.28, signals=("flawed",))
def fapo(rollouts: Rollouts, settings: SchemeSettings, state: State) -> torch.Tensor:
    """1 right, 0 right but flawed, -1 wrong. Published with overlong_buffer=4096."""
    sound = (rollouts.signal("flawed") == 0).double()
    return torch.where(rollouts.correct, sound, -1.0)


@scheme(
    "CRM, arXiv 2511.09158; alpha and annealing ours", signals=("conciseness", "difficulty"),
    constants=("crf_alpha", "crf_annealing"),
)  # fmt: skip
def crf(rollouts: Rollouts, settings: SchemeSettings, state: State) -> torch.Tensor:
    """c (1 + alpha k (s + d)): conciseness k, difficulty d, annealing s."""
    urgency = now(settings.crf_annealing) + rollouts.signal("difficulty")
    return rollouts.correct * (1 + settings.crf_alpha * rollouts.signal("conciseness") * urgency)


def step_rewards(accuracies: list[float], decay: float = 0.7, ahead: int = 4) -> list[float]:
    """VSRM's rewards of the splits 0 .. S - 1 of a thought from the accuracies at splits 0 .. S, S its end.

    The change to the next split; where there is none, the first change within `ahead` further splits, times
    decay^distance.
    """
    changes = [after - before for before, after in zip(accuracies, accuracies[1:], strict=False)]
    found = []
    for here in range(len(changes)):
        seen = range(here, min(here + ahead + 1, len(changes)))
        first = next((k for k in seen if changes[k] != 0), here)
        found.append(changes[first] * decay ** (first - here))
    return found


def _placed(rollouts: Rollouts, settings: SchemeSettings) -> Steps:
    assert rollouts.steps is not None  # checked before
    rows, positions, accuracies = rollouts.steps
    values = torch.zeros_like(accuracies, dtype=torch.float64)
    for row in rows.unique().tolist():
        own = (rows == row).nonzero()[:, 0]
        found = step_rewards(accuracies[own].tolist(), settings.vsrm_decay, settings.vsrm_ahead)
        values[own[:-1]] = torch.tensor(found, dtype=torch.float64, device=values.device)
    return Steps(rows, positions, values)


@scheme(
    "VSRM, 1benwu1/VSRM-Efficient-LRMs; critic-free form ours", placed=_placed, constants=("vsrm_decay", "vsrm_ahead")
)
def vsrm(rollouts: Rollouts, settings: SchemeSettings, state: State) -> torch.Tensor:
    """outcome + all step rewards: each change of accuracy along the thought, placed at its split, seen ahead with decay
    .7 over at most 4 flat splits. Every token's advantage is of its reward-to-go, over all tokens of the group."""
    rows, _, values = _placed(rollouts, settings)
    return rollouts.outcome.double().index_add(0, rows, values)
