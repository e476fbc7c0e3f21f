"""The program and the thinking budget that a command line asks for, and what they did."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import adapt_kernels as ak


def load_program(given: str, settings: Sequence[str], tokenizer: Any) -> ak.Program:
    """The program of a JSON file, of a folder with program.json, or of a preset with its settings "name=value".

    Values are JSON; what is not is taken as text. Raises ValueError or FileNotFoundError.
    """
    path = Path(given)
    if path.is_dir() or path.suffix == ".json":
        if settings:
            raise ValueError(f"--program-setting belongs to a preset, and {given} is a file or folder: edit it instead")
        if path.is_dir():
            return ak.Program.from_pretrained(path, tokenizer)
        return ak.Program.from_dict(_read(path), tokenizer)
    return ak.Program.preset(given, tokenizer, **dict(_setting(each) for each in settings))


def _read(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"no program file {path}: expected JSON with 'rules' and, optionally, 'spans'")
    try:
        content = json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    # What `Program.save_pretrained` writes holds the definition beside its ids.
    return content["program"] if isinstance(content, dict) and "program" in content else content


def _setting(given: str) -> tuple[str, Any]:
    name, equals, value = given.partition("=")
    if not equals or not name:
        raise ValueError(f"--program-setting must be NAME=VALUE, such as tokens=64; got {given!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def thought_span(tokenizer: Any) -> dict[str, ak.Span]:
    """{"think": the span from `<think>` to `</think>`} where both are one token; else {}, and the modes must tell."""
    vocabulary = tokenizer.get_vocab()
    tags = [vocabulary.get(tag) for tag in ("<think>", "</think>")]
    return {} if None in tags else {"think": ak.Span(*tags)}


def described(fired: Sequence[int], spans: Sequence[tuple], never_armed: Sequence[str]) -> str:
    """One line: how often each rule acted, and the visits of each span with what closed them."""
    visits = [f"{name} {end - start} tokens, closed by {by}" for name, start, end, by in spans]
    counts = ", ".join(f"{count} x rule {index}" for index, count in enumerate(fired) if count > 0)
    parts = [f"fired: {counts or 'no rule'}", *visits]
    if never_armed:
        parts.append(f"never armed: {', '.join(never_armed)}")
    return "; ".join(parts)
