"""The table: what a row is, and how its rewards become advantages."""

from collections.abc import Callable, Collection, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from adapt_kernels.advantages import Advantages
from adapt_kernels.schemes.baselines import centred, centred_tokens, reward_to_go
from adapt_kernels.schemes.kinds import column
from adapt_kernels.schemes.rollouts import SIGNALS, Rollouts, checked, checked_steps, finite
from adapt_kernels.schemes.settings import SchemeSettings
from adapt_kernels.schemes.state import State

Reward = Callable[[Rollouts, SchemeSettings, State], torch.Tensor]


class Segment(NamedTuple):
    """A segment that has an advantage of its own: its reward [B] and its baseline."""

    reward: Reward
    baseline: str = "mean_std"


@dataclass(frozen=True)
class Scheme:
    """One method.

    reward: (Rollouts, SchemeSettings, state) -> [B] float64; its docstring is the formula. baseline: what makes an
        advantage of it (`BASELINES`), on every token; epsilon: beside the std.
    segments: "mode" (the mode token) or "answer" (from `Rollouts.answer_start` on), credited by rewards of their own.
    offset: added to the advantage after the baseline, [B]. placed: (rows, positions, values) of rewards earned at
        tokens before the last; then every token has an advantage of its own, of what it still earns.
    kl_weight: [B], multiplies the KL term of each row. kl_on_mode: whether the mode token has a KL term; False: it
        anchors the answers, and leaves the choice of a mode free. arithmetic: stands in the place of all of these.
    mode_kind, response_kind: loss of either segment ("ppo", "cispo", "reinforce").
    clip_high, dual_clip: upper clip of the ratio, and its bound where the advantage is negative (None = none).
    uniform_old: a forced mode token's old log-prob is log(1/M), the probability it was forced with; False: the
        policy's own log-prob of it at the rollout, so that forcing leaves no importance weight.
    mode_mean: "tokens": the mode token is one token among all; "sequences": the mode tokens have a mean of their own,
        weighted by `degrpo_alpha`, and the responses another.
    margin: default coefficient of the penalty on the spread of the mode logits.
    loss_type: default normaliser, in TRL's terms.
    num_modes: the numbers of modes it is defined for; None = any. per_mode: the setting with an entry for each mode.
    signals, optional: names of the signals it needs, and of those it can use. constants: names of its settings.
    stateful: whether it carries state between batches. source: where it was published.
    """

    reward: Reward
    baseline: str = "mean_std"
    mode_kind: str = "ppo"
    response_kind: str = "ppo"
    clip_high: float = 0.2
    dual_clip: float | None = None
    uniform_old: bool = False
    mode_mean: str = "tokens"
    margin: float = 0.0
    loss_type: str = "dapo"
    num_modes: tuple[int, ...] | None = None
    per_mode: str | None = None
    epsilon: float = 1e-6
    segments: Mapping[str, Segment] = field(default_factory=dict)
    offset: Reward | None = None
    placed: Callable[[Rollouts, SchemeSettings], tuple] | None = None
    kl_weight: Reward | None = None
    kl_on_mode: bool = True
    arithmetic: Callable[[Rollouts, SchemeSettings], Advantages] | None = None
    signals: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()
    stateful: bool = False
    source: str = ""

    def check(self, name: str, settings: SchemeSettings, num_modes: int, given: Collection[str]) -> None:
        """Raises ValueError for settings or a number of modes that the scheme is not defined for.

        given: names of the signals there are.
        """
        allowed = self.num_modes
        if allowed is not None and num_modes not in allowed:
            raise ValueError(f"scheme {name!r} is defined for {' or '.join(map(str, allowed))} modes; got {num_modes}")
        if settings.baseline is not None and self.arithmetic is not None:
            raise ValueError(f"scheme {name!r} has a baseline of its own: leave baseline={settings.baseline!r} out")
        if self.per_mode is None or set(self.optional) & set(given):
            return
        if max(getattr(settings, self.per_mode)) > settings.max_length:
            raise ValueError(
                f"{self.per_mode} must be at most max_length = {settings.max_length} for scheme {name!r}; got"
                f" {getattr(settings, self.per_mode)}"
            )
        if len(getattr(settings, self.per_mode)) != num_modes:
            raise ValueError(
                f"scheme {name!r} needs an entry of {self.per_mode} for each of the {num_modes} modes, or the signal"
                f" {' or '.join(self.optional)}; got {getattr(settings, self.per_mode)}"
            )

    def rewards(
        self, rollouts: Rollouts, settings: SchemeSettings | None = None, state: State | None = None
    ) -> torch.Tensor:
        """[B] float64, before the baseline. state is updated in place."""
        rollouts, settings, state = self._prepared(rollouts, settings, state)
        return self._rewards(rollouts, settings, state)

    def advantages(
        self, rollouts: Rollouts, settings: SchemeSettings | None = None, state: State | None = None
    ) -> Advantages:
        """Advantages of the B rows. state is updated in place."""
        rollouts, settings, state = self._prepared(rollouts, settings, state)
        if len(rollouts.outcome) == 0:
            return _float(rollouts.outcome, rollouts)
        weights = None if self.kl_weight is None else self.kl_weight(rollouts, settings, state).float()
        reward = self._rewards(rollouts, settings, state)
        if self.arithmetic is not None:
            return self.arithmetic(rollouts._replace(outcome=reward), settings)
        baseline = self.baseline if settings.baseline is None else settings.baseline
        if self.placed is not None:
            last = rollouts.outcome.double()
            last = last + overlong(rollouts, settings) if settings.overlong_buffer else last
            to_go = reward_to_go(last, self.placed(rollouts, settings), rollouts.lengths)
            tokens = centred_tokens(to_go, rollouts, baseline, self.epsilon).float()
            last = tokens.gather(1, rollouts.lengths[:, None] - 1)[:, 0]
            return Advantages(tokens[:, 0], last, rollouts.lengths, tokens=tokens)
        found = centred(reward, rollouts, baseline, self.epsilon)
        if self.offset is not None:
            found = found + self.offset(rollouts, settings, state)
        others = {
            name: centred(part.reward(rollouts, settings, state).double(), rollouts, part.baseline, self.epsilon)
            for name, part in self.segments.items()
        }
        return _float(found, rollouts, weights, **others)

    def _rewards(self, rollouts: Rollouts, settings: SchemeSettings, state: State) -> torch.Tensor:
        if len(rollouts.outcome) == 0:
            return rollouts.outcome.double()
        reward = self.reward(rollouts, settings, state).double()
        return reward + overlong(rollouts, settings) if settings.overlong_buffer else reward

    def _prepared(self, rollouts, settings, state) -> tuple[Rollouts, SchemeSettings, State]:
        for argument, value, kind in (("settings", settings, SchemeSettings), ("state", state, MutableMapping)):
            if value is not None and not isinstance(value, kind):
                raise TypeError(f"{argument} must be a {kind.__name__}, or None; got {type(value).__name__}")
        loose = [key for key, value in (state or {}).items() if not isinstance(value, torch.Tensor)]
        if loose:
            raise TypeError(
                f"state must hold tensors, as a former call left them; got {loose[0]} = {state[loose[0]]!r}"
            )
        settings = SchemeSettings() if settings is None else settings
        name = next((name for name, row in SCHEMES.items() if row is self), "this one")
        rollouts = checked(rollouts)
        self.check(name, settings, rollouts.num_modes, rollouts.signals or ())
        rollouts = rollouts._replace(**self._own_columns(name, rollouts))
        return rollouts, settings.at(rollouts.progress, rollouts.step), {} if state is None else state

    def _own_columns(self, name: str, rollouts: Rollouts) -> dict[str, Any]:
        """What this scheme needs beside the columns that every scheme has."""
        rows = len(rollouts.outcome)
        found: dict[str, Any] = {}
        for signal in (*self.signals, *self.optional):
            value = rollouts.given(signal)
            if value is None and signal in self.optional:
                continue
            if value is None:
                what = SIGNALS.get(signal, "a number for each row")
                raise ValueError(f"scheme {name!r} needs {signal}, {what}: give it in Rollouts.signals")
            finite(f"scheme {name!r} needs {signal}", column(signal, value, rows))
        if self.placed is not None:
            found["steps"] = checked_steps(name, rollouts)
        if "answer" in self.segments:
            if rollouts.answer_start is None:
                raise ValueError(f"scheme {name!r} needs Rollouts.answer_start, where each answer's first token is")
            found["answer_start"] = column("answer_start", rollouts.answer_start, rows, integers=True)
        return found


SCHEMES: dict[str, Scheme] = {}


def scheme(source: str, **row) -> Callable[[Reward], Reward]:
    """Put the reward function below it into the table, under its own name."""

    def listed(reward: Reward) -> Reward:
        SCHEMES[reward.__name__] = Scheme(reward, source=source, **row)
        return reward

    return listed


def overlong(rollouts: Rollouts, settings: SchemeSettings) -> torch.Tensor:
    """DAPO's soft overlong punishment (arXiv 2503.14476), [B]: 0 up to max - buffer, falling to -factor at max."""
    beyond = rollouts.lengths.double() - (settings.max_length - settings.overlong_buffer)
    return -settings.overlong_factor * (beyond / settings.overlong_buffer).clamp(0, 1)


def _float(found: torch.Tensor, rollouts: Rollouts, kl_weight=None, mode=None, answer=None) -> Advantages:
    mode = found if mode is None else mode
    start = rollouts.answer_start
    if answer is None:
        return Advantages(mode.float(), found.float(), rollouts.lengths, kl_weight=kl_weight)
    return Advantages(mode.float(), found.float(), rollouts.lengths, answer.float(), start, kl_weight=kl_weight)
