"""Whether the settings of a preset are of the types that its function is annotated with."""

import sys
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, cast, get_args, get_origin, get_type_hints

from adapt_kernels.program.rules import Span

_MOST = sys.float_info.max


def check_settings(name: str, build: Callable, settings: Mapping) -> None:
    """Raises TypeError that names the preset, the setting, what was given and what it takes.

    Settings without an annotation are token patterns, which the program looks at.
    """
    hints = get_type_hints(build)
    for setting, value in settings.items():
        wanted = hints.get(setting, Any)
        if not _fits(value, wanted):
            raise TypeError(f"preset {name!r}: {setting} must be {_told(wanted)}; got {value!r}")


def _fits(value, wanted) -> bool:
    if wanted is Any:
        return True
    if isinstance(wanted, UnionType):
        return any(_fits(value, each) for each in get_args(wanted))
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin is Sequence:
        return isinstance(value, Sequence) and not isinstance(value, str) and all(_fits(each, *inner) for each in value)
    if origin is tuple:
        return isinstance(value, Sequence) and len(value) == len(inner) and all(map(_fits, value, inner))
    if wanted is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if wanted is float:
        return isinstance(value, Real) and not isinstance(value, bool) and -_MOST <= cast(float, value) <= _MOST
    return isinstance(value, wanted)


def _told(wanted) -> str:
    if isinstance(wanted, UnionType):
        return " or ".join(map(_told, get_args(wanted)))
    inner = get_args(wanted)
    if get_origin(wanted) is Sequence:
        return f"a list with {_told(inner[0])} each"
    if get_origin(wanted) is tuple:
        return f"({', '.join(map(_told, inner))})"
    return _WORDS[wanted]


_WORDS = {
    int: "an integer",
    float: "a finite number",
    str: "a text",
    dict: "an object",
    Span: "an adapt_kernels.Span",
    NoneType: "None",
}
