"""Settings of a command from a YAML file: the shipped ones by name, any other by path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

SHIPPED = Path(__file__).parent / "configs"
Config = TypeVar("Config")


def load_config(
    kind: type[Config], source: str | Path | None = None, given: Mapping[str, Any] | None = None, /, **options: Any
) -> Config:
    """The settings of dataclass `kind` in `source`, then those of `given`, then `options` that are not None on top.

    source: None (the defaults), the name of a shipped file ("rl" is configs/rl.yaml), or a path ending in .yaml or
    .yml. Raises ValueError naming the file for an unknown key (and the allowed ones), a value of the wrong type, or
    whatever `kind` itself refuses.
    """
    path = None if source is None else _find(source)
    values = {} if path is None else _read(path)
    values.update(given or {})
    values.update((name, value) for name, value in options.items() if value is not None)
    _check_keys(kind, values, str(path or "the options"))
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        if first["type"] == "value_error":  # raised by `kind` itself, which knows best
            raise ValueError(f"{path}: {first['ctx']['error']}" if path else str(first["ctx"]["error"])) from error
        raise ValueError(f"{path or 'options'}: {where}: {first['msg']}, got {first['input']!r}") from error


def shipped_configs() -> list[str]:
    """Names of the YAML files that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def named(command: str, source: str | None) -> str | None:
    """`source`, or the shipped file that serves it for this command: "smollm2" of "sft" is sft_smollm2."""
    own = f"{command}_{source}"
    return own if own in shipped_configs() else source


def raw_settings(source: str | Path | None) -> dict[str, Any]:
    """The lines of a configuration file as they stand; none without one."""
    return {} if source is None else _read(_find(source))


def _find(source: str | Path) -> Path:
    path = Path(source)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ValueError(f"configuration {path} does not exist")
        return path
    if str(source) not in shipped_configs():
        raise ValueError(
            f"no shipped configuration is named {str(source)!r}; there is: {', '.join(shipped_configs())} "
            "(or give a path ending in .yaml)"
        )
    return SHIPPED / f"{source}.yaml"


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold `name: value` lines, got {type(values).__name__}")
    return values


def _check_keys(kind: type, values: dict[str, Any], where: str) -> None:
    allowed = [field.name for field in fields(kind)]
    if unknown := [str(key) for key in values if key not in allowed]:
        raise ValueError(f"{where}: unknown key {', '.join(unknown)}; allowed: {', '.join(allowed)}")
    for name, hint in get_type_hints(kind).items():
        inner = next((part for part in get_args(hint) if is_dataclass(part)), None)
        if inner is not None and isinstance(values.get(name), list | tuple):
            for i, item in enumerate(values[name]):
                if isinstance(item, dict):
                    _check_keys(inner, item, f"{where}: {name}[{i}]")


def parse_settings(settings: Iterable[str] | None, **options: Any) -> dict[str, Any]:
    """The values of "name=value" texts, each value read as YAML, beside `options`, which have flags of their own.

    Raises ValueError for what is no such text, and for a name that is given twice.
    """
    values = {name: value for name, value in options.items() if value is not None}
    for setting in settings or ():
        name, equals, text = (part.strip() for part in setting.partition("="))
        if not equals:
            raise ValueError(f"--set takes NAME=VALUE, got {setting!r}")
        if name in values:
            raise ValueError(f"{name} is given twice, the second time as --set {setting}: leave one of them out")
        try:
            values[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            why = " ".join(str(error).split())
            raise ValueError(f"--set {setting}: the value must be YAML: {why}") from error
    return values
