"""The `when` of a rule: clauses that must all hold, and the chance and hold that stand beside it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import cast

RANGES = ("at", "count", "total", "entry", "left")
_LARGEST = 1e38
_KEYS = {"in", "mode", "after", "drawn", "every", "if", "times", *RANGES}


@dataclass(frozen=True)
class RowInput:
    """A number or a sequence that each row brings to the call: {"input": name}."""

    name: str


@dataclass(frozen=True)
class Range:
    """Half-open [low, high); None = open. A bound may be a `RowInput`."""

    low: float | RowInput | None = None
    high: float | RowInput | None = None

    @property
    def one_step(self) -> bool:
        """Whether the upper bound is a number, so that what only grows leaves the range for good."""
        return self.high is not None


@dataclass(frozen=True)
class Register:
    """Where a number of a row is read: a row input, a probe's result or a signal; window > 1 = its mean over so many
    steps, NaN until there are that many."""

    name: str
    window: int = 1


@dataclass(frozen=True)
class When:
    """Clauses of one rule; None = not given. `inside` is False for "!span", `or_none` True for the mode [name, null]: a
    row without a mode counts too."""

    span: str | None = None
    inside: bool = True
    mode: str | None = None
    or_none: bool = False
    after: object = None
    drawn: object = None
    every: int | RowInput | None = None
    times: int | None = None
    conditions: tuple[tuple[Register, Range], ...] = ()
    ranges: Mapping[str, Range] = field(default_factory=dict)

    @property
    def has_edge(self) -> bool:
        """Whether it holds at single steps only, or finitely often."""
        return any(
            (
                self.after is not None,
                self.drawn is not None,
                self.every is not None,
                self.times is not None,
                *(self.ranges[name].one_step for name in ("at", "count", "total") if name in self.ranges),
            )
        )


@dataclass(frozen=True)
class Ramp:
    """A chance that rises from 0 where the register is `low` to 1 where it is `high`."""

    register: Register
    low: float
    high: float


def parse_when(given, label: str) -> When:
    """The clauses of a JSON `when`. Raises ValueError for unknown keys, and for clauses that need another one."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{label}: 'when' must be an object of clauses; got {given!r}")
    check_keys(given, _KEYS, f"{label} 'when'")
    span = given.get("in")
    if span is not None and (not isinstance(span, str) or span in ("", "!")):
        raise ValueError(f"{label}: 'in' must be a span's name, or '!' and the name; got {span!r}")
    mode, or_none = _mode(given.get("mode"), f"{label} 'mode'")
    when = When(
        span=None if span is None else span.removeprefix("!"),
        inside=span is None or not span.startswith("!"),
        mode=mode,
        or_none=or_none,
        after=given.get("after"),
        drawn=given.get("drawn"),
        every=None if "every" not in given else _bound(given["every"], f"{label} 'every'", at_least=1),
        times=None if "times" not in given else whole(given["times"], f"{label} 'times'", at_least=1),
        conditions=_conditions(given.get("if", {}), f"{label} 'if'"),
        ranges={name: _range(given[name], f"{label} {name!r}") for name in RANGES if name in given},
    )
    for name in ("total", "entry", "every"):
        if name in given and span is None:
            raise ValueError(f"{label}: {name!r} is of a span: give 'in' too")
    if "total" in given and not when.inside:
        raise ValueError(f"{label}: 'total' counts tokens inside a span; it cannot stand with 'in': {span!r}")
    return when


def parse_chance(given, label: str) -> float | Ramp | None:
    """`p`: a number in [0, 1], or {"ramp": [register, low, high]}."""
    if given is None:
        return None
    if isinstance(given, Mapping) and set(given) == {"ramp"}:
        parts = given["ramp"]
        if isinstance(parts, (list, tuple)) and len(parts) == 3:
            low, high = (number(each, f"{label} 'p' ramp") for each in parts[1:])
            if low == high:
                raise ValueError(f"{label}: the two ends of a ramp must differ; got {low} twice")
            return Ramp(_register(parts[0], label), low, high)
    elif isinstance(given, Real) and not isinstance(given, bool) and 0 <= float(given) <= 1:
        return float(given)
    raise ValueError(f"{label}: 'p' must be in [0, 1] or {{'ramp': [register, low, high]}}; got {given!r}")


def parse_hold(given, when: When, label: str) -> int | str:
    """`hold`: n steps that an `after` edge stays true, or "span"."""
    if given is None:
        return 1
    if when.after is None:
        raise ValueError(f"{label}: 'hold' prolongs an 'after' edge, and this rule has none")
    if given == "span":
        if when.span is None:
            raise ValueError(f"{label}: 'hold': 'span' needs 'in', the span whose end it waits for")
        return "span"
    return whole(given, f"{label} 'hold'", at_least=1)


def check_keys(given: Mapping, allowed, label: str) -> None:
    """Raises ValueError that names the first unknown key and lists the allowed ones."""
    unknown = [key for key in given if key not in allowed]
    if unknown:
        raise ValueError(f"{label}: unknown key {unknown[0]!r}; there are {', '.join(sorted(map(str, allowed)))}")


def number(given, label: str) -> float:
    """A finite number as float, of a size that float32 holds."""
    if isinstance(given, bool) or not isinstance(given, Real) or given != given or abs(given) == math.inf:
        raise ValueError(f"{label} must be a finite number; got {given!r}")
    if abs(cast(float, given)) > _LARGEST:
        raise ValueError(f"{label} must be at most {_LARGEST:g} either way; got {given!r}")
    return float(given)


def whole(given, label: str, at_least: int = 0) -> int:
    """An integer, at least so large."""
    if isinstance(given, bool) or not isinstance(given, Integral) or given < at_least:
        raise ValueError(f"{label} must be an integer >= {at_least}; got {given!r}")
    return int(given)


def row_input(given, label: str) -> RowInput | None:
    """{"input": name} as RowInput, None for anything that is no object."""
    if not isinstance(given, Mapping):
        return None
    check_keys(given, {"input"}, label)
    return RowInput(_given_name(given.get("input"), f"{label} 'input'"))


def _bound(given, label: str, at_least: int = 0):
    return None if given is None else row_input(given, label) or whole(given, label, at_least)


def _range(given, label: str) -> Range:
    if isinstance(given, Integral) and not isinstance(given, bool):
        return Range(whole(given, label), int(given) + 1)
    if not isinstance(given, (list, tuple)) or len(given) != 2:
        raise ValueError(f"{label} must be an integer or [low, high), null = open; got {given!r}")
    low, high = (_bound(each, label) for each in given)
    _check_order(low, high, label, given)
    return Range(low, high)


def _conditions(given, label: str) -> tuple[tuple[Register, Range], ...]:
    if not isinstance(given, Mapping):
        raise ValueError(f"{label} must be an object of registers and ranges; got {given!r}")
    found = []
    for name, wanted in given.items():
        window = 1
        if isinstance(wanted, Mapping):
            check_keys(wanted, {"range", "mean"}, f"{label} {name!r}")
            window = whole(wanted.get("mean", 1), f"{label} {name!r} 'mean'", at_least=1)
            wanted = wanted.get("range")
        found.append((Register(_register(name, label).name, window), _real_range(wanted, f"{label} {name!r}")))
    return tuple(found)


def _real_range(given, label: str) -> Range:
    if isinstance(given, Integral) and not isinstance(given, bool):
        return Range(float(given), float(given) + 1)
    if not isinstance(given, (list, tuple)) or len(given) != 2:
        raise ValueError(f"{label} must be an integer or [low, high), null = open; got {given!r}")
    low, high = (None if each is None else number(each, label) for each in given)
    _check_order(low, high, label, given)
    return Range(low, high)


def _check_order(low, high, label: str, given) -> None:
    if isinstance(low, Real) and isinstance(high, Real) and low >= high:
        raise ValueError(f"{label}: [low, high) is empty; got {given!r}")


def _register(given, label: str) -> Register:
    return Register(_given_name(given, f"{label}: a register"))


def _mode(given, label: str) -> tuple[str | None, bool]:
    name, or_none = given, False
    if isinstance(given, (list, tuple)) and len(given) == 2 and given[1] is None:
        name, or_none = given[0], True
    if given is not None and (not isinstance(name, str) or not name):
        raise ValueError(f"{label} must be a name, or [name, null]; got {given!r}")
    return name, or_none


def _given_name(given, label: str) -> str:
    if not isinstance(given, str) or not given:
        raise ValueError(f"{label} must be a name; got {given!r}")
    return given
