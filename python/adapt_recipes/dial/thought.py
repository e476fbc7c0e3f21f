"""Which tokens of a reply are its thought."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import adapt_kernels as ak
from adapt_recipes.programs import thought_span


@dataclass(frozen=True)
class Tags:
    """The token ids that open a thought and that close it."""

    open: tuple[int, ...]
    close: tuple[int, ...]


def thought_tags(modes: ak.Modes, tokenizer: Any) -> Tags | None:
    """The tags of the modes' own span "think", or else `<think>` and `</think>`; None where there are none."""
    span = modes.spans.get("think")
    if span is not None:
        ids = _ids(span["open"]), _ids(span["close"])
    else:
        plain = thought_span(tokenizer).get("think")
        ids = (None, None) if plain is None else (_ids(plain.open), _ids(plain.close))
    return Tags(*ids) if all(ids) else None


def tag_openings(modes: ak.Modes, tokenizer: Any) -> list[tuple[int, ...]]:
    """Openings of modes that are markup such as `<answer>`: no part of an answer, unlike a first word."""
    openings = [modes[name].ids for name in modes.names if modes[name].ids]
    return [ids for ids in openings if re.fullmatch(r"<[^<>]+>", tokenizer.decode(ids).strip())]


def without_opening(ids: list[int], openings: Sequence[tuple[int, ...]]) -> list[int]:
    """Ids of an answer without the tag that it begins with, if it does."""
    return next((ids[len(tag) :] for tag in openings if tuple(ids[: len(tag)]) == tag), ids)


def _ids(given: Any) -> tuple[int, ...] | None:
    """Ids of a tag; None for a pattern, which is more than a tag."""
    if isinstance(given, int):
        return (given,)
    listed = isinstance(given, Sequence) and not isinstance(given, str)
    return tuple(given) if listed and all(isinstance(each, int) for each in given) else None


def is_open(prompt: Sequence[int], tags: Tags | None) -> bool:
    """Whether the prompt leaves a thought open, as templates that write the opening tag do."""
    if tags is None:
        return False
    return _last(prompt, tags.open) > _last(prompt, tags.close)


def split(ids: Sequence[int], tags: Tags | None, inside: bool = False) -> tuple[list[int], list[int]]:
    """(thought, answer) token ids of a reply, tags left out; several thoughts are joined.

    inside: the prompt had opened a thought.
    """
    if tags is None:
        return [], list(ids)
    parts: tuple[list[int], list[int]] = ([], [])
    at = 0
    while at < len(ids):
        tag = tags.close if inside else tags.open
        if tuple(ids[at : at + len(tag)]) == tag:
            inside, at = not inside, at + len(tag)
        else:
            parts[0 if inside else 1].append(ids[at])
            at += 1
    return parts


def _last(ids: Sequence[int], tag: tuple[int, ...]) -> int:
    starts = [at for at in range(len(ids) - len(tag) + 1) if tuple(ids[at : at + len(tag)]) == tag]
    return starts[-1] if starts else -1
