"""The running-sum task: arithmetic modulo 10 whose difficulty is the number of operands.

A prompt such as ``3 +4 +9 . . . . . . ?`` asks for (3 + 4 + 9) mod 10. Dots fill up to eight operands, so every prompt
has the same number of tokens. A model answers in one of two modes:

    fast   <answer> 6              the answer at once
    slow   <think> 7 6 </think> 6  every partial sum first, then the answer

One operand can be answered at a glance; eight are hard without writing the partial sums down.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

FAST_TOKEN = "<answer>"
SLOW_TOKEN = "<think>"
SLOW_END_TOKEN = "</think>"
PAD_TOKEN = "<pad>"
EOS_TOKEN = "<eos>"
FILLER = "."
QUESTION = "?"
MAX_DIFFICULTY = 8

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


def problems(n: int, difficulty: int | None = None, seed: int = 0) -> list[Problem]:
    """Draw `n` problems; the same arguments give the same problems on every machine.

    difficulty: number of operands, 1 to 8, for all of them; None draws it uniformly for each problem.
    Problems are independent draws, so easy ones repeat: difficulty 1 has only 100 different prompts.
    """
    require_int("n", n, minimum=0)
    require_int("seed", seed)
    if difficulty is not None:
        require_int("difficulty", difficulty, minimum=1, maximum=MAX_DIFFICULTY, alternative="None (uniform)")
    # A text seed keeps the streams of different difficulties apart; random() is stable across Python versions.
    source = random.Random(f"adapt-task {seed} {difficulty}")
    return [_draw(source, difficulty) for _ in range(n)]


def make_problem(start: int, operands: list[int]) -> Problem:
    """The problem that begins with digit `start` and adds `operands` (one to eight digits)."""
    filler = [FILLER] * (MAX_DIFFICULTY - len(operands))
    prompt = " ".join([str(start), *(f"+{digit}" for digit in operands), *filler, QUESTION])
    return Problem(prompt, str((start + sum(operands)) % 10), len(operands))


def grade(problem: Problem, completion: str) -> bool:
    """Whether `completion`, the decoded new text, answers `problem` correctly.

    Right is exactly one answer digit, after the mode token or after a closed trace; a completion without its mode token
    (because the prompt already ended in it) is read the same way. Trailing end and padding tokens are ignored.
    A trace that was never closed, or anything after the answer, is wrong. What the trace says is not judged.
    """
    return answer_text(completion) == problem.answer


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


def _draw(source: random.Random, difficulty: int | None) -> Problem:
    def digit() -> int:
        return int(source.random() * 10)

    count = difficulty if difficulty is not None else 1 + int(source.random() * MAX_DIFFICULTY)
    return make_problem(digit(), [digit() for _ in range(count)])


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
