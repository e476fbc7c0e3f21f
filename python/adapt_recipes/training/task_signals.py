"""Signals of the schemes that the tasks can tell by themselves, as reward functions named after them.

Those of a judge model (conciseness), of argmax tokens (triggers) and of sub-rollouts are not among them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from adapt_recipes.tasks.problem import Problem
from adapt_recipes.tasks.running_sum import sound_trace

NGRAM = 4  # tokens: traces here are a dozen long, published are n-grams of up to 40
EFFORT = 0.8  # the share of its group's mean length that an answer may take
# ARLCP's list.
_REFLECTIONS = (
    "wait|alternatively|hold on|another thought|verify|think again|but|however|alternative|check|double-check|oh|hmm"
)
_REFLECTION = re.compile(rf"\b(?:{_REFLECTIONS})\b", re.IGNORECASE)


def repetition(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
    """The share of tokens in n-grams that occur more than once."""
    return [_repeated(list(ids)) for ids in completion_ids]


def reflections(completions: Sequence[Any], **_: Any) -> list[float]:
    """How many words of the list occur."""
    return [float(len(_REFLECTION.findall(text_of(completion)))) for completion in completions]


def flawed(completions: Sequence[Any], problem: Sequence[dict[str, Any]], **_: Any) -> list[float]:
    """1 where the trace writes a wrong partial sum: what a judge would find."""
    pairs = zip(problem, completions, strict=True)
    return [float(not sound_trace(Problem(**given), text_of(completion))) for given, completion in pairs]


def effort(completions: Sequence[Any], **_: Any) -> list[float]:
    """The same for every row."""
    return [EFFORT] * len(completions)


OFFERED = {function.__name__: function for function in (repetition, reflections, flawed, effort)}


def text_of(completion: Any) -> str:
    """The text of a completion, which chat templates make a list of messages."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def _repeated(ids: list[int]) -> float:
    grams = [tuple(ids[i : i + NGRAM]) for i in range(len(ids) - NGRAM + 1)]
    counts = Counter(grams)
    inside = {i + offset for i, gram in enumerate(grams) if counts[gram] > 1 for offset in range(NGRAM)}
    return len(inside) / len(ids) if ids else 0.0
