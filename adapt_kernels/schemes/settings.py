"""Constants of the schemes, and settings that change while a run goes on."""

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from adapt_kernels.schemes.baselines import BASELINES
from adapt_kernels.schemes.kinds import as_default, number, whole

_SHAPES = ("linear", "cosine", "steps")


@dataclass(frozen=True)
class Schedule:
    """A number that changes during the training; stands in the place of one in `SchemeSettings`.

    shape: "linear" and "cosine" go from start to end with the progress; "steps" is
    max(end, start * factor^floor(step / every)), by optimiser steps.
    """

    start: float
    end: float = 0.0
    shape: str = "linear"
    factor: float = 1.0
    every: int = 100

    def __post_init__(self):
        if self.shape not in _SHAPES:
            raise ValueError(f"shape must be one of {', '.join(map(repr, _SHAPES))}; got {self.shape!r}")
        for name in ("start", "end", "factor"):
            number(name, getattr(self, name))
        if whole("every", self.every) < 1:
            raise ValueError(f"every must be at least 1 step; got {self.every}")
        if not 0 < self.factor <= 1:
            raise ValueError(f"factor must be in (0, 1]; got {self.factor}")
        if self.shape == "steps" and self.end > self.start:
            raise ValueError(f"end must be at most start, from which steps fall; got {self.end} above {self.start}")

    def at(self, progress: float, step: int) -> float:
        """The value when that share of the training, and so many steps, are done."""
        if self.shape == "steps":
            return max(self.end, self.start * self.factor ** (step // self.every))
        done = progress if self.shape == "linear" else 0.5 * (1 - math.cos(math.pi * progress))
        return self.start + (self.end - self.start) * done


@dataclass(frozen=True)
class SchemeSettings:
    """Constants of the schemes; the defaults are the published ones, but for those that `adapt schemes` calls ours.

    gamma: ADaPT's and AdaCoT's accuracy asked of the fast mode.
    degrpo_rewards: of a correct answer in each mode and of a wrong one, DeGRPO; degrpo_alpha: weight of its mode token.
    adaptthink_delta: AdaptThink's bonus for the fast mode.
    adacot_missed, adacot_over: AdaCoT's penalties for not thinking where it is needed and for thinking where it is not.
    avr_bonus, avr_penalty: AVR's, in order of modes (the first and the last with two modes); avr_length: the tokens up
        to which its reward is whole; avr_diversity: its reward for rare modes at the start of the training.
    length_penalty, length_scale: reward lost by a sequence of `length_scale` tokens.
    baseline: of any scheme's row, in the place of its own (`adapt_kernels.schemes.BASELINES`).
    reference_form: the released code's arithmetic where it differs from what was meant (AVR, HBPO, AdaCtrl, Long-Short,
        AdaThink-Med, ARES; `adapt schemes NAME` says how).
    max_length: tokens of the longest response (HBPO, Apriel, overlong). overlong_buffer: DAPO's soft punishment of the
        last so many of them, added to any scheme's reward; 0 = none; overlong_factor: what a response that fills them
        loses.

    The others belong to the scheme whose name they begin with. A number may be a `Schedule`.
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

    baseline: str | None = None
    reference_form: bool = False
    max_length: int = 4096
    overlong_buffer: int = 0
    overlong_factor: float = 1.0

    laser_length: float = 4096.0  # tokens up to which a right answer earns the bonus
    laser_bonus: float = 0.5
    laser_lower: int = 1024  # laser_d, laser_de: the least target, the grid's step and its end, batches between targets
    laser_step: int = 1024
    laser_upper: int = 16384
    laser_every: int = 20
    length_norm_alpha: float = 0.4
    kimi_weight: float = 0.4
    arlcp_counts: tuple[int, ...] = (40, 80)
    arlcp_weights: tuple[float, ...] = (0.05, 0.1, 0.15)
    arlcp_total: float = 0.2
    hbpo_budgets: tuple[int, ...] = (512, 1024, 2048, 2560)  # one for each mode
    adactrl_easy: float = 0.625
    adactrl_length: float = 0.5
    adactrl_format: float = 0.5
    apriel_gamma: float = 1.0
    apriel_failure: float = 1.0
    apriel_buffer: int | None = None  # None = a fifth of max_length
    traac_window: int = 10
    adathink_alpha: float = 0.5
    adathink_quantile: float = 0.7
    adathink_decay: float = 0.9
    ares_kl_target: float = 0.01
    pear_alpha: float = 1.0
    pear_format: float = 0.0
    crf_alpha: float = 0.2
    crf_annealing: float | Schedule = Schedule(1.0, 0.0)
    train_long_budget: float | Schedule = Schedule(256.0, 1.0, "steps", 0.8, 100)
    train_long_weight: float = 1.0
    vsrm_decay: float = 0.7
    vsrm_ahead: int = 4

    def __post_init__(self):
        for field in fields(self):
            if field.name not in ("baseline", "apriel_buffer"):
                self._take(field.name, field.default)
        if self.apriel_buffer is not None:
            self._take("apriel_buffer", 1)
        for name, entries in _THREE.items():
            if len(getattr(self, name)) != 3:
                raise ValueError(f"{name} must be {entries}; got {getattr(self, name)}")
        if not isinstance(self.baseline, str | None) or self.baseline not in (None, *BASELINES):
            allowed = ", ".join(map(repr, BASELINES))
            raise ValueError(f"baseline must be one of {allowed}, or None for the scheme's own; got {self.baseline!r}")
        if len(self.arlcp_weights) != len(self.arlcp_counts) + 1:
            raise ValueError(
                f"arlcp_weights must have one entry more than arlcp_counts, which lie between them; got"
                f" {len(self.arlcp_weights)} and {len(self.arlcp_counts)}"
            )
        shortest = min(_ends(self.max_length))
        if max(_ends(self.apriel_buffer or 1)) > shortest:
            raise ValueError(f"apriel_buffer must be in (0, max_length = {shortest}]; got {self.apriel_buffer}")
        if max(_ends(self.overlong_buffer)) > shortest:
            raise ValueError(f"overlong_buffer must be at most max_length = {shortest}; got {self.overlong_buffer}")

    def _take(self, name: str, default) -> None:
        """Check the field, of the kind of its default; a list becomes a tuple."""
        value = getattr(self, name)
        if not isinstance(value, Schedule):
            object.__setattr__(self, name, as_default(name, value, default))
        elif isinstance(default, bool | tuple):
            raise TypeError(f"{name} must not be a Schedule, which moves one number; got {value}")
        ends = _ends(getattr(self, name))
        low, high = _RANGES.get(name, (None, None))
        for entry in [e for end in ends for e in (end if isinstance(end, tuple) else (end,))]:
            if low == _ABOVE and not entry > 0:
                raise ValueError(f"{name} must be above 0; got {getattr(self, name)}")
            if high is not None and not 0 <= entry <= high:
                limit = f"in [0, {high}]" if high < math.inf else "at least 0"
                raise ValueError(f"{name} must be {limit}; got {getattr(self, name)}")

    @property
    def buffer(self) -> float:
        """Apriel's."""
        return max(1, self.max_length // 5) if self.apriel_buffer is None else self.apriel_buffer

    def at(self, progress: float, step: int) -> "SchemeSettings":
        """These settings with every schedule's value of now; that of a whole number is rounded."""
        found: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Schedule):
                now = value.at(progress, step)
                found[field.name] = round(now) if isinstance(field.default, int) or field.default is None else now
        return replace(self, **found) if found else self


_THREE = dict.fromkeys(("avr_bonus", "avr_penalty"), "three entries, for AVR's three modes")
_THREE["degrpo_rewards"] = "(correct fast, correct slow, wrong)"
_ABOVE = "above 0"
_POSITIVE = (
    "degrpo_alpha avr_length length_scale max_length laser_length laser_lower laser_step laser_upper laser_every"
    " hbpo_budgets traac_window ares_kl_target train_long_budget apriel_buffer"
)
_SHARES = "gamma adactrl_easy adathink_alpha adathink_quantile adathink_decay vsrm_decay"
_AT_LEAST_0 = "overlong_buffer overlong_factor vsrm_ahead apriel_gamma train_long_weight crf_alpha pear_alpha"
_RANGES = {
    **dict.fromkeys(_POSITIVE.split(), (_ABOVE, None)),
    **dict.fromkeys(_SHARES.split(), (0, 1)),
    **dict.fromkeys(_AT_LEAST_0.split(), (0, math.inf)),
}


def now(value: float | Schedule) -> float:
    """A constant of `SchemeSettings.at`, which holds no schedules."""
    assert not isinstance(value, Schedule)
    return value


def _ends(value) -> tuple:
    """The values between which a setting lies all through the training."""
    return (value.start, value.end) if isinstance(value, Schedule) else (value,)
