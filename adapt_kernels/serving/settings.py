"""The settings that one request brings to a serving engine: read, checked, and told apart from other people's keys."""

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real

from adapt_kernels.philox import check_seed
from adapt_kernels.program.program import Program

NAMES = ("mode", "mode_bias", "fast_prob", "thinking_budget", "program", "adapt_seed")
ROW_KEY = "adapt_row"  # the seed of the row, written where requests enter an engine; never a user's
_OTHERS = frozenset({"model", "models", "modal", "modality", "programs_path", "modes_path"})
_CLOSE = 0.84  # share of equal characters from which a key counts as ours, misspelt


@dataclass(frozen=True)
class Settings:
    """One request's settings; None = not given. bias: one per mode, where `mode_bias` was given."""

    mode: str | None = None
    bias: tuple[float, ...] | None = None
    fast_prob: float | None = None
    thinking_budget: int | None = None
    program: Program | None = None
    seed: int | None = None

    @property
    def gated(self) -> bool:
        """Whether the first token is restricted to the modes."""
        return not (self.mode is None and self.bias is None and self.fast_prob is None)

    @property
    def steers(self) -> bool:
        """Whether anything is asked of any row."""
        return self.gated or self.thinking_budget is not None or self.program is not None


def check_names(given: Mapping | None) -> bool:
    """Whether any key is one of `NAMES`. Raises ValueError for a key that looks like ours and is not."""
    for key in given or ():
        if key not in NAMES and _near(str(key)):
            raise ValueError(
                f"{key}: unknown setting, did you mean {_near(str(key))}? The settings are {', '.join(NAMES)}"
            )
    return any(key in NAMES for key in given or ())


def _near(key: str) -> str | None:
    plain = key.lower().replace("-", "_")
    if plain in _OTHERS:
        return None
    if plain.startswith("adapt"):
        return "adapt_seed"
    squeezed = {name.replace("_", ""): name for name in NAMES}
    found = difflib.get_close_matches(plain.replace("_", ""), squeezed, 1, _CLOSE)
    return squeezed[found[0]] if found else None


def parse(given: Mapping | None, served) -> Settings:
    """The settings among `given`; served: the `Served` model. Raises ValueError that begins with the field's name."""
    check_names(given)
    given = {name: value for name, value in (given or {}).items() if name in NAMES and value is not None}
    choices = [name for name in ("mode_bias", "fast_prob") if name in given]
    if len(choices) == 2:
        raise ValueError("mode_bias: it and fast_prob both set P(mode), give one of them")
    mode = _mode(given.get("mode"), served)
    if mode not in (None, "auto") and choices:
        raise ValueError(f"mode: {mode!r} already decides the mode, leave out {choices[0]} or give mode='auto'")
    return Settings(
        mode=mode,
        bias=None if "mode_bias" not in given else _bias(given["mode_bias"], served),
        fast_prob=None if "fast_prob" not in given else _prob(given["fast_prob"], served),
        thinking_budget=None if "thinking_budget" not in given else _budget(given["thinking_budget"]),
        program=None if "program" not in given else _program(given["program"], served),
        seed=None if "adapt_seed" not in given else _seed(given["adapt_seed"]),
    )


def _mode(value, served) -> str | None:
    if value is None:
        return None
    names = _modes(served, "mode").names
    if value == "balanced":
        raise ValueError("mode: 'balanced' splits the samples of one prompt, send one request per mode instead")
    if value != "auto" and value not in names:
        raise ValueError(f"mode: must be 'auto' or one of {', '.join(map(repr, names))}; got {value!r}")
    return value


def _modes(served, field: str):
    try:
        return served.gate_modes
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from None


def _bias(value, served) -> tuple[float, ...]:
    names = _modes(served, "mode_bias").names
    if isinstance(value, str):
        value = _json("mode_bias", value)
    by_name = dict(value) if isinstance(value, Mapping) else {names[0]: value}
    for name, each in by_name.items():
        if name not in names:
            raise ValueError(f"mode_bias: no mode is called {name!r}, there are {', '.join(map(repr, names))}")
        if not _is_number(each) or math.isnan(each):
            raise ValueError(
                f"mode_bias: must be a number of logit units for mode {names[0]!r}, or one per mode as JSON text; got"
                f" {each!r}"
            )
    return tuple(float(by_name.get(name, 0.0)) for name in names)


def _prob(value, served) -> float:
    _modes(served, "fast_prob")
    if not _is_number(value) or not 0 < value < 1:
        raise ValueError(f"fast_prob: must be a number inside (0, 1); got {value!r}")
    return float(value)


def _budget(value) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        raise ValueError(f"thinking_budget: must be a whole number of tokens >= 0; got {value!r}")
    return int(value)


def _seed(value) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"adapt_seed: must be an integer; got {value!r}")
    try:
        check_seed(int(value))
    except ValueError as error:
        raise ValueError(f"adapt_seed: {error}") from None
    return int(value)


def _program(value, served) -> Program:
    if isinstance(value, str) and not value.lstrip().startswith("{"):
        if value not in served.programs:
            known = ", ".join(map(repr, served.programs)) or "none"
            raise ValueError(
                f"program: must be the name of a program of this server ({known}) or its JSON text; got {value!r}"
            )
        return served.programs[value]
    definition = _json("program", value) if isinstance(value, str) else value
    try:
        return served.program(definition)
    except (ValueError, TypeError) as error:
        raise ValueError(f"program: {error}") from None


def _json(field: str, text: str):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{field}: {text!r} is not JSON ({error})") from None


def _is_number(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def misplaced(names: Sequence[str]) -> str | None:
    """The first of some other keys of a request that is one of ours."""
    return next((name for name in names if name in NAMES), None)
