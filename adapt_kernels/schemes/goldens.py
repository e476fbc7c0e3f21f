"""Worked examples of the schemes: a batch and what it earns. `adapt schemes NAME` shows them, tests hold them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from adapt_kernels.schemes.rollouts import Rollouts, Steps
from adapt_kernels.schemes.settings import SchemeSettings


@dataclass(frozen=True)
class Golden:
    """One batch of a scheme. Rows are of one group unless `groups` says otherwise; modes are 0 unless given.

    signals: named numbers of each row. steps: (row, position, accuracy) of each measurement. state: what earlier
    batches left. rewards, advantages: what comes out, of the first rows where fewer are listed; tokens: of the first
    row's tokens.
    """

    correct: tuple[int, ...]
    lengths: tuple[int, ...]
    rewards: tuple[float, ...] = ()
    advantages: tuple[float, ...] = ()
    modes: tuple[int, ...] = ()
    groups: tuple[int, ...] = ()
    num_modes: int = 2
    progress: float = 0.0
    step: int = 0
    signals: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    steps: tuple[tuple[int, int, float], ...] = ()
    settings: Mapping = field(default_factory=dict)
    state: Mapping[str, tuple | float] = field(default_factory=dict)
    mode_advantages: tuple[float, ...] = ()
    tokens: tuple[float, ...] = ()

    @property
    def rollouts(self) -> Rollouts:
        rows = len(self.correct)
        marks = [torch.tensor(column) for column in zip(*self.steps, strict=True)]
        return Rollouts(
            torch.tensor(self.correct, dtype=torch.float64),
            torch.tensor(self.correct, dtype=torch.bool),
            torch.tensor(self.lengths),
            torch.tensor(self.groups or (0,) * rows),
            torch.tensor(self.modes or (0,) * rows),
            self.num_modes,
            self.progress,
            signals={name: torch.tensor(values, dtype=torch.float64) for name, values in self.signals.items()},
            step=self.step,
            steps=Steps(marks[0], marks[1], marks[2].double()) if marks else None,
        )

    @property
    def scheme_settings(self) -> SchemeSettings:
        return SchemeSettings(**self.settings)

    @property
    def new_state(self) -> dict[str, torch.Tensor]:
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in self.state.items()}


def _all(values: tuple, times: int) -> tuple:
    return tuple(value for value in values for _ in range(times))


def _bands(right: int, earning: tuple[float, ...]) -> Golden:
    """Five prompts of one band, `right` of 8 answers right: one length each."""
    lengths = (300, 700, 900, 1500, 3000)
    found = ((0.5 + earn + 0.5,) * right + (-0.5,) * (8 - right) for earn in earning)
    return Golden(
        ((1,) * right + (0,) * (8 - right)) * 5, _all(lengths, 8), sum(found, ()), groups=_all(tuple(range(5)), 8),
        settings={"laser_lower": 512},
    )  # fmt: skip


_AVR: dict[str, Any] = {
    "correct": (1, 1, 1, 0, 1, 0, 1, 0), "lengths": (20, 20, 20, 20, 100, 100, 450, 50), "num_modes": 3,
    "modes": (0, 0, 0, 0, 1, 1, 2, -1),
}  # fmt: skip
_HBPO: dict[str, Any] = {
    "correct": (1, 1, 1, 0), "lengths": (400, 1500, 1500, 3000), "modes": (0, 0, 2, 2), "num_modes": 4,
    "rewards": (3.923141, 3.115027, 2.828422, 0),
}  # fmt: skip
_LASER_STATE: dict[str, Any] = {
    "laser_targets": (1024.0,) * 3, "laser_recent": ((1.0, 0, 900),), "laser_recent_batches": 1.0,
}  # fmt: skip
_ONE_AND_A_HALF: dict[str, Any] = {"correct": (1, 1, 1, 0), "lengths": (1000, 2000, 3000, 1500)}
_EASY, _MEDIUM, _HARD = (1, 1, 0), (1, 0), (1, 0, 0, 0)

GOLDENS: dict[str, tuple[Golden, ...]] = {
    "separate": (
        Golden((1, 0, 1, 1), (4, 3, 2, 2), (1, 0, 1, 1), (0.5, -0.5, 0, 0), modes=(1, 1, 0, 0),
               mode_advantages=(-0.999996, -0.999996, 0.999996, 0.999996)),
    ),
    "reference": (
        Golden((1, 0, 1, 1), (4, 3, 2, 2), (1, 0, 1, 1), (0.691093, -1.209413, 0.691093, 0.691093), modes=(1, 1, 0, 0),
               mode_advantages=(-0.259160, -2.159667, 0.691093, 0.691093)),
    ),
    "degrpo": (
        Golden((1, 0, 1, 0), (2, 2, 10, 10), (1, -1, 0.5, -1), (1.125, -0.875, 0.625, -0.875), modes=(0, 0, 1, 1)),
    ),
    "adaptthink": (
        Golden((1, 0, 1, 0), (2, 2, 10, 10), (0.8, -0.2, 0.75, -0.25), (0.8, -0.2, 0.75, -0.25), modes=(0, 0, 1, 1),
               signals={"reference_accuracy": (0.25,) * 4}),
    ),
    "adacot": (Golden((1, 1, 1, 0), (2, 2, 10, 10), (1, 1, 0.7, -0.3), modes=(0, 0, 1, 1)),),
    "ada_grpo": (
        Golden((1, 1, 0, 1), (2,) * 4, (4, 4 / 3, 0, 4 / 3), modes=(0, 1, 1, 1)),
        Golden((1, 1, 0, 1), (2,) * 4, (1, 1, 0, 1), modes=(0, 1, 1, 1), progress=1.0),
    ),
    "avr": (
        Golden(**_AVR, rewards=(1.714286, 1.714286, 1.714286, -0.285714, 1.657143, 0.157143, 1.095238, -1),
               advantages=(0.805106, 0.805106, 0.805106, -1.049011, 0.752131, -0.638456, 0.231213, -1.711195)),
        Golden(**_AVR, rewards=(1.607143, 1.607143, 1.607143, -0.392857, 1.478571, -0.021429, 0.880952, -1),
               progress=0.5),
        Golden(**_AVR, rewards=(1.5, 1.5, 1.5, -0.5, 1.3, -0.2, 0.666667, -1), progress=1.0),
    ),
    "length_penalty": (
        Golden((1, 0, 1, 0), (2, 2, 10, 10), (0.95, -0.05, 0.75, -0.25),
               settings={"length_penalty": 0.5, "length_scale": 20.0}),
    ),
    "grpo": (Golden((1, 0, 1, 0), (2,) * 4, (1, 0, 1, 0), (0.865875, -0.865875, 0.865875, -0.865875)),),
    "hipo": (
        Golden((1, 1, 1, 0), (2,) * 4, (1, 1, 1, 0), (0.499999, 0.499999, 0.499999, -1.499997), modes=(0, 0, 1, 1),
               mode_advantages=(0.25, 0.25, -0.25, -0.25)),
    ),
    "laser": (
        Golden((1, 1, 1, 0), (300, 400, 900, 700), (1.5, 1.5, 1, -0.5), (0.660337, 0.660337, 0.132067, -1.452742),
               settings={"laser_length": 500}),
    ),
    "laser_d": (
        _bands(6, (0.5, 0, 0, 0, 0)), _bands(3, (0.5, 0.5, 0.5, 0, 0)), _bands(2, (0.5,) * 5),
    ),
    "laser_de": (
        Golden((1, 0, 0, 0), (900, 2000, 600, 3000), (1.5, 0, -0.5, -0.5), (1.452742, -0.132067, -0.660337, -0.660337),
               signals={"repetition": (0, 0, 0, 0.3)}, state=_LASER_STATE),
    ),
    "length_norm": (Golden(**_ONE_AND_A_HALF, rewards=(0.892423, 0.8, 0.707577, 0)),),
    "kimi_length": (Golden((1, 0, 1, 0), (100, 200, 300, 400), (1.2, -0.5, 0.933333, -0.7)),),
    "long_short": (
        Golden((1, 0, 1, 0), (100, 200, 300, 400), (1.5, 0, 0.833333, -0.5),
               (1.175900, -0.517396, 0.423324, -1.081828)),
    ),
    "e1": (Golden((1, 1, 1, 0), (100, 300, 500, 700), (1, 1, 0, 0), signals={"effort": (0.8,) * 4}),),
    "train_long": (
        Golden((0,) * 5, (50, 100, 150, 200, 250), (0.5, 1, 0.5, 0, 0), settings={"train_long_budget": 100.0}),
        Golden((0, 1), (128, 256), (0.5, 2), step=99),
        Golden((0, 1), (128, 256), (0.625, 1.75), step=100),
    ),
    "hbpo": (
        Golden(**_HBPO, advantages=(0.448437, -0.024557, -1.202462, -2.857954)),
        Golden(**_HBPO, advantages=(0.044380, -0.428613, -2.616673, -4.272165), settings={"reference_form": True}),
    ),
    "adactrl": (
        Golden((1, 1, 1, 0), (200, 400, 600, 800), (1.926777, 1, 0.5, -0.5),
               (1.181193, 0.265187, -0.229001, -1.217379), modes=(0, 1, -1, 0)),
    ),
    "apriel": (
        Golden((1, 1, 0, 1), (700, 850, 950, 1000), (1, 0.8125, -1.25, -2), signals={"finished": (1, 1, 1, 0)},
               settings={"max_length": 1000, "apriel_buffer": 200}),
    ),
    "traac": (
        Golden((1, 1, 1, 0) * 2, (100, 240, 380, 150, 120, 260, 400, 50), (5.25, 4.949016, 4.55, 0.5),
               groups=(0,) * 4 + (1,) * 4),
    ),
    "adathink_med": (
        Golden((1, 1, 1, 1, 0, 0, 1, 0), (100, 200, 300, 400, 300, 500, 400, 600),
               (1.8, 1.7, 1.7, 1.5, 0.3, 0.333333, 1.5, 0.533333), groups=(0,) * 4 + (1,) * 4,
               signals={
                   "entropy_top": (0.0, 0.6487212707, 1.7182818285, 0.6487212707, 0.2214027582, 1.2255409285,
                                   0.8221188004, 0.4918246976),
                   "repetition": (0,) * 8,
               }),
    ),
    "ares": (
        Golden(_EASY, (9,) * 3, (1,), signals={"triggers": (10, 10, 10)}),
        Golden(_EASY, (9,) * 3, (0.785714,), signals={"triggers": (14, 8, 8)}),
        Golden((0, 1, 1), (9,) * 3, (0.15,), signals={"triggers": (10, 10, 10)}),
        Golden(_MEDIUM, (9,) * 2, (0.818182,), signals={"triggers": (4, 16)}),
        Golden((0, 1), (9,) * 2, (0.258263,), signals={"triggers": (14, 6)}),
        Golden(_HARD, (9,) * 4, (1.457525,), signals={"triggers": (10, 10, 10, 10)}),
        Golden(_HARD, (9,) * 4, (0.9,), signals={"triggers": (2, 10, 14, 14)}),
        Golden((0, 1, 0, 0), (9,) * 4, (0.3,), signals={"triggers": (10, 10, 10, 10)}),
    ),
    "pear": (
        Golden((1, 1, 1, 0), (9,) * 4, (0.8, 1, 0.2, 0), (0.630125, 1.050208, -0.630125, -1.050208),
               signals={"entropy_think": (0.5, 0.2, 0.9, 0.4), "entropy_answer": (0.3, 0.3, 0.1, 0.3)}),
    ),
    "arlcp": (
        Golden(**_ONE_AND_A_HALF, rewards=(0.946212, 0.9, 0.853788, 0), advantages=(0.361616, 0.3, 0.238384, -0.9),
               signals={"reflections": (10, 50, 90, 20)}),
    ),
    "fapo": (
        Golden((1, 1, 0, 1), (9,) * 4, (1, 0, -1, 1), (0.783349, -0.261116, -1.305581, 0.783349),
               signals={"flawed": (0, 1, 0, 0)}),
    ),
    "crf": (
        Golden((1, 1, 0), (9,) * 3, (1.12, 1.06, 0), progress=0.5,
               signals={"conciseness": (0.8, 0.4, 0.9), "difficulty": (0.25,) * 3}),
    ),
    "vsrm": (
        Golden((1,), (7,), (2.114,), settings={"baseline": "none"}, tokens=(2.114, 1.82, 1.4, 0.8, 1, 1, 1),
               steps=tuple((0, i, a) for i, a in enumerate((0.2, 0.2, 0.2, 0.8, 0.6, 0.6)))),
        Golden((1,), (8,), (3.7731,), settings={"baseline": "none"},
               tokens=(3.7731, 3.7731, 3.7731, 3.533, 3.19, 2.7, 2, 1),
               steps=tuple((0, i, a) for i, a in enumerate((0,) * 7 + (1,)))),
    ),
}  # fmt: skip
