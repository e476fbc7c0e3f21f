"""What a setting of a scheme may be: a number, a whole number, yes or no, or several numbers."""

import sys
from numbers import Real
from typing import Any, cast

import torch


def number(name: str, value: Any) -> float:
    """The value itself. Raises TypeError for what is no number, ValueError for one that is not finite."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number; got {value!r}")
    if not abs(cast(float, value)) <= sys.float_info.max:
        raise ValueError(f"{name} must be finite; got {value!r}")
    return cast(float, value)


def whole(name: str, value, at_least: int | None = None) -> int:
    """As `number`, for those without a fraction: 4096.0 is 4096."""
    if number(name, value) != int(value):
        raise ValueError(f"{name} must be a whole number; got {value!r}")
    if at_least is not None and value < at_least:
        raise ValueError(f"{name} must be at least {at_least}; got {value!r}")
    return int(value)


def as_default(name: str, value, default):
    """`value`, if it is of the default's kind: several numbers for several, a whole one for a whole one."""
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False; got {value!r}")
        return value
    if not isinstance(default, tuple):
        return whole(name, value) if isinstance(default, int) else number(name, value)
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{name} must be a tuple of numbers; got {value!r}")
    return tuple(as_default(name, entry, default[0]) for entry in value)


def column(name: str, value, rows: int, integers: bool = False) -> torch.Tensor:
    """[rows], int64 if `integers`, else as it came. Raises TypeError or ValueError for another kind or shape."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a tensor [B] = ({rows},); got {type(value).__name__}")
    if value.shape != (rows,):
        raise ValueError(f"{name} must be [B], one entry for each of {rows} rows; got shape {tuple(value.shape)}")
    if not integers:
        return value
    if rows and (value.dtype == torch.bool or value.is_floating_point() or value.is_complex()):
        raise TypeError(f"{name} must hold integers; got {value.dtype}")
    return value.long()
