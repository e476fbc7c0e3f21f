"""A problem of any family, and how an answer is read out of a completion in either mode."""

from __future__ import annotations

import re
from dataclasses import dataclass

FAST_TOKEN = "<answer>"
SLOW_TOKEN = "<think>"
SLOW_END_TOKEN = "</think>"
PAD_TOKEN = "<pad>"
EOS_TOKEN = "<eos>"

_MODE_WORDS = {FAST_TOKEN, SLOW_TOKEN, SLOW_END_TOKEN}
# Decoders differ in whether they put spaces around tags.
_TAGS = re.compile("|".join(map(re.escape, sorted({*_MODE_WORDS, PAD_TOKEN, EOS_TOKEN}))))


@dataclass(frozen=True)
class Problem:
    """One question: the prompt text, the answer as text, its difficulty, and the family that can grade it.

    In the running-sum family the answer is a digit and the difficulty the number of operands (1 to 8).
    """

    prompt: str
    answer: str
    difficulty: int
    family: str = "running_sum"


def answer_text(completion: str) -> str | None:
    """The words of `completion` after its mode token or closed trace, joined by spaces; None for a malformed one."""
    words = _TAGS.sub(r" \g<0> ", completion).split()
    while words and words[-1] in (EOS_TOKEN, PAD_TOKEN):
        words.pop()
    if SLOW_END_TOKEN in words:
        end = words.index(SLOW_END_TOKEN)
        trace = words[1:end] if words[0] == SLOW_TOKEN else words[:end]
        if _MODE_WORDS.intersection(trace):
            return None
        words = words[end + 1 :]
    elif words and words[0] == FAST_TOKEN:
        words = words[1:]
    return None if _MODE_WORDS.intersection(words) else " ".join(words)


def require_int(
    name: str, value: object, minimum: int | None = None, maximum: int | None = None, alternative: str = ""
) -> None:
    """Raise ValueError unless `value` is an integer within the bounds; `alternative` names what else is allowed."""
    low = value < minimum if minimum is not None and isinstance(value, int) else False
    high = value > maximum if maximum is not None and isinstance(value, int) else False
    if not isinstance(value, int) or isinstance(value, bool) or low or high:
        allowed = "an integer"
        if minimum is not None:
            allowed += f" from {minimum} to {maximum}" if maximum is not None else f" of at least {minimum}"
        if alternative:
            allowed += f" or {alternative}"
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
