"""Rewards that compare with targets carried from batch to batch."""

import torch

from adapt_kernels.schemes.groups import Groups, accuracy, bands, by_band, thirds
from adapt_kernels.schemes.lengths import laser_base
from adapt_kernels.schemes.rollouts import Rollouts
from adapt_kernels.schemes.settings import SchemeSettings
from adapt_kernels.schemes.state import State, moving_average, remembered
from adapt_kernels.schemes.table import scheme

_LASER = ("laser_bonus", "laser_lower", "laser_step", "laser_upper", "laser_every")
_OURS = "LASER, arXiv 2505.15612; its monitor is the last batches of the training, ours"


@scheme(_OURS, clip_high=0.28, stateful=True, constants=_LASER)
def laser_d(rollouts: Rollouts, settings: SchemeSettings, state: State) -> torch.Tensor:
    """As laser, up to a target length for the band of the group's accuracy (thirds).

    Target: the least length of the grid within which a share of the band's responses lies: 1 / floor(2n/3) for easy,
    1 / floor(n/3) for medium, all for hard; found every laser_every batches, from the batches since.
    """
    base, target = laser_base(rollouts), _targets(rollouts, settings, state)
    return base + settings.laser_bonus * ((base == 1) & (rollouts.lengths <= target))


@scheme(_OURS, clip_high=0.28, stateful=True, signals=("repetition",), constants=_LASER)
def laser_de(rollouts: Rollouts, settings: SchemeSettings, state: State) -> torch.Tensor:
    """As laser_d, and + .5 for a wrong answer beyond the target that does not repeat itself."""
    base, target = laser_base(rollouts), _targets(rollouts, settings, state)
    short = (base == 1) & (rollouts.lengths <= target)
    explores = (base == -0.5) & (rollouts.lengths > target) & (rollouts.signal("repetition") == 0)
    return base + settings.laser_bonus * (short | explores)


def _targets(rollouts: Rollouts, settings: SchemeSettings, state: State) -> torch.Tensor:
    band = thirds(rollouts)
    recent = remembered(state, "laser_recent", (band, rollouts.lengths), settings.laser_every)
    batch = int(state["laser_recent_batches"]) - 1
    if batch % settings.laser_every == 0 or "laser_targets" not in state:
        state["laser_targets"] = _found_targets(rollouts, settings, *recent.unbind(1))
    return by_band(band, state["laser_targets"].to(band.device))


def _found_targets(rollouts: Rollouts, settings: SchemeSettings, band, lengths) -> torch.Tensor:
    lower, step = settings.laser_lower, settings.laser_step
    first = step if lower < step else lower + step
    grid = torch.tensor([lower, *range(first, settings.laser_upper + 1, step)], device=lengths.device)
    samples = int(Groups(rollouts).size().max())
    found = []
    for kind, share in enumerate((1, samples // 3, 2 * samples // 3)):
        own = lengths[band == kind]
        within = (own[:, None] <= grid).sum(0) * max(share, 1) >= max(len(own), 1)
        found.append(grid[within][0] if within.any() else rollouts.lengths.max())
    return torch.stack([target.double() for target in found])


@scheme("TRAAC, joykirat18/TRAAC; its reward", clip_high=0.28, stateful=True, constants=("traac_window",))
def traac(rollouts: Rollouts, settings: SchemeSettings, state: State) -> torch.Tensor:
    """4 c + .5 unless malformed + len; len, if right: d max(clip((max - L) / (max - min), 0, 1), s((med - L) / .1 med))
    of the lengths of right answers of the last 10 batches in the same band; d = 1, .75, .5 for accuracy >= .8, .3."""
    band = bands(accuracy(rollouts), 0.3, 0.8)
    right = rollouts.correct & rollouts.valid
    columns = band[right], rollouts.lengths[right]
    known_band, known = remembered(state, "traac_recent", columns, settings.traac_window).unbind(1)
    lengths, share = rollouts.lengths.double(), torch.zeros_like(rollouts.lengths, dtype=torch.float64)
    for kind, weight in enumerate((0.5, 0.75, 1.0)):
        own, rows = known[known_band == kind], right & (band == kind)
        if len(own) and rows.any():
            least, most, median = own.min(), own.max(), own.quantile(0.5)
            falling = ((most - lengths) / (most - least).clamp(min=1)).clamp(0, 1)
            falling = torch.where(most > least, falling, 1.0)
            share = torch.where(rows, weight * falling.maximum(torch.sigmoid(10 * (1 - lengths / median))), share)
    return 4.0 * rollouts.correct + 0.5 * rollouts.valid + share


@scheme(
    "AdaThink-Med, shaohao011/AdaThinkMed", clip_high=0.28, stateful=True, signals=("entropy_top", "repetition"),
    constants=("adathink_alpha", "adathink_quantile", "adathink_decay", "reference_form"),
)  # fmt: skip
def adathink_med(rollouts: Rollouts, settings: SchemeSettings, state: State) -> torch.Tensor:
    """c + .5 unless malformed + .5 (len - .05 repetition). e: min-max over the batch of log(1 + E), E the top entropy;
    w = .5 + .5 (1 - e); difficulty d = 1 - mean c (1 - alpha e), easy below theta = EMA of the batch's .7-quantile;
    len = max(0, 1 - w L / EMA of easy L) if easy and right, min(1, w L / EMA of hard L - 1) if hard and wrong.

    reference_form: -.05 for every row of more than 40 tokens in the place of the repetition.
    """
    entropy = torch.log1p(rollouts.signal("entropy_top"))
    spread = entropy.max() - entropy.min()
    unsure = (entropy - entropy.min()) / spread if spread > 0 else torch.zeros_like(entropy)
    groups = Groups(rollouts)
    difficulty = 1 - groups.mean(rollouts.correct * (1 - settings.adathink_alpha * unsure))
    quantile = difficulty[groups.first_rows()].quantile(settings.adathink_quantile)
    easy = difficulty < moving_average(state, "adathink_theta", quantile, settings.adathink_decay)
    lengths, relative = rollouts.lengths.double(), torch.zeros_like(difficulty)
    for name, side in (("adathink_easy", easy), ("adathink_hard", ~easy)):
        if side.any():
            known = state.get(name, lengths[side].mean()).to(lengths.device)
            relative = torch.where(side, (0.5 + 0.5 * (1 - unsure)) * lengths / known, relative)
            moving_average(state, name, lengths[side].mean(), settings.adathink_decay)
    length = torch.where(easy & rollouts.correct, (1 - relative).clamp(min=0), 0.0)
    length = torch.where(~easy & ~rollouts.correct, (relative - 1).clamp(max=1), length)
    repeats = (lengths > 40).double() if settings.reference_form else rollouts.signal("repetition")
    return rollouts.correct + 0.5 * rollouts.valid + 0.5 * (length - 0.05 * repeats)
