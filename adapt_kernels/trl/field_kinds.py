"""What the fields of ADaPTConfig may be, told before any of them is used."""

from collections.abc import Mapping
from dataclasses import fields

from adapt_kernels.schemes.kinds import number, whole

_NUMBERS = (
    "mode_weight",
    "mode_margin_coef",
    "dual_clip",
    "correct_threshold",
    "epsilon",
    "epsilon_high",
    "beta",
    "entropy_coef",
)
_NONE_IS_DEFAULT = ("mode_margin_coef", "dual_clip", "epsilon_high", "correct_reward")
_FLAGS = ("mask_mode_token", "merge_adapter")
_NAMES = ("correct_reward", "reference_accuracy_column")
_OBJECTS = ("signals", "constants", "generation_kwargs")


def check_kinds(config) -> None:
    """Raises TypeError or ValueError naming a field that is of another kind than it takes."""

    def given(names):
        found = [(name, getattr(config, name)) for name in names]
        return [(name, value) for name, value in found if value is not None or name not in _NONE_IS_DEFAULT]

    for name, value in given(_NUMBERS):
        number(name, value)
    for name, least in (("num_generations", 2), ("max_completion_length", 1)):
        if getattr(config, name) is None:
            raise ValueError(f"{name} must be at least {least}; got None")
        whole(name, getattr(config, name), least)
    for name, value in given(_FLAGS):
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False; got {value!r}")
    for name, value in given(_NAMES):
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a name; got {value!r}")
    for name, value in given(_OBJECTS):
        if value is not None and not (isinstance(value, Mapping) and all(isinstance(key, str) for key in value)):
            raise TypeError(f"{name} must be a mapping with names as keys, or None; got {value!r}")
    for signal, source in (config.signals or {}).items():
        if not isinstance(source, str):
            raise TypeError(f"signals: {signal!r} must be the name of a reward function or a column; got {source!r}")
    weights = config.reward_weights
    if weights is not None and not isinstance(weights, (list, tuple)):
        raise TypeError(f"reward_weights must be a list with a number for each reward function; got {weights!r}")
    for weight in weights or ():
        number("reward_weights", weight)


def made(kind: type, given: Mapping, what: str):
    """The dataclass `kind` from a mapping. Raises ValueError that names a key it does not have, or one it lacks."""
    names = [field.name for field in fields(kind)]
    unknown = [key for key in given if key not in names]
    if unknown:
        raise ValueError(f"{what}: {kind.__name__} has no {unknown[0]!r}; it has {', '.join(names)}")
    try:
        return kind(**given)
    except TypeError as error:
        raise TypeError(f"{what}: {error}") from None
