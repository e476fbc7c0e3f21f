"""What the controls of the page say, as arguments of the patched `generate`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

CONTROLS = ("bias", "share", "mode")
MAX_NEW_TOKENS = 4096


@dataclass(frozen=True)
class Setting:
    """One position of the dial.

    control: which of `bias` (logit units, added to the first mode), `share` (exact probability of the first mode,
    inside (0, 1)) and `mode` (a name) acts. thinking_budget: exact cap of the thought in tokens, None = none. program:
    a preset's name or None, program_settings: its settings, "tokens=32 soft=0". sample: draw every token at
    temperature 1; else only the mode is drawn and the rest is greedy. Raises ValueError for what cannot be asked.
    """

    control: str = "bias"
    bias: float = 0.0
    share: float = 0.5
    mode: str = "slow"
    thinking_budget: int | None = None
    program: str | None = None
    program_settings: str = ""
    max_new_tokens: int = 256
    seed: int = 0
    sample: bool = False

    def __post_init__(self) -> None:
        if self.control not in CONTROLS:
            raise ValueError(f"control must be one of {', '.join(CONTROLS)}; got {self.control!r}")
        if not math.isfinite(_number("bias", self.bias)):
            raise ValueError(f"bias must be a finite number of logit units; got {self.bias}")
        if not 0 < _number("share", self.share) < 1:
            raise ValueError(f"the exact share must be inside (0, 1), or force a mode instead; got {self.share}")
        _whole("the most new tokens", self.max_new_tokens, 1, MAX_NEW_TOKENS)
        _whole("the seed", self.seed, 0, 2**63 - 1)
        if self.thinking_budget is not None:
            _whole("the thinking budget", self.thinking_budget, 0, MAX_NEW_TOKENS)

    def gate(self) -> dict[str, Any]:
        """The one argument that chooses the mode."""
        named = {"bias": ("mode_bias", self.bias), "share": ("fast_prob", self.share), "mode": ("mode", self.mode)}
        name, value = named[self.control]
        return {name: value}

    def arguments(self) -> dict[str, Any]:
        """Arguments of `generate` but the program. temperature 1 makes P(mode) exactly what `shifted` says; top_k=1
        does not act on the mode and makes the rest greedy."""
        drawn = {"do_sample": True, "temperature": 1.0, "top_k": 0 if self.sample else 1, "top_p": 1.0}
        budget = {} if self.thinking_budget is None else {"thinking_budget": self.thinking_budget}
        return {**self.gate(), **drawn, **budget, "seed": self.seed, "max_new_tokens": self.max_new_tokens}

    def shifted(self, probs: Sequence[float], modes: Sequence[str]) -> list[float]:
        """P(mode) under this setting, from the model's own `probs`: what `generate` draws the mode with at T = 1."""
        if self.control == "mode":
            return [float(name == self.mode) for name in modes]
        if self.control == "share":
            rest = sum(probs[1:])
            if rest == 0:  # nothing tells the others apart
                return [self.share, *((1 - self.share) / (len(probs) - 1) for _ in probs[1:])]
            return [self.share, *((1 - self.share) * p / rest for p in probs[1:])]
        logits = [math.log(p) if p > 0 else -math.inf for p in probs]
        logits[0] += self.bias
        weights = [math.exp(logit - max(logits)) for logit in logits]
        return [weight / sum(weights) for weight in weights]


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number; got {value!r}")
    return float(value)


def _whole(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}; got {value!r}")


def whole(value: Any) -> Any:
    """A number field's 12.0 as 12; anything else as it is, for `Setting` to judge."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
