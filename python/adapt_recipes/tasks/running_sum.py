"""The running-sum task: arithmetic modulo 10 whose difficulty is the number of operands.

A prompt such as ``3 +4 +9 . . . . . . ?`` asks for (3 + 4 + 9) mod 10. Dots fill up to eight operands, so every prompt
has the same number of tokens. A model answers in one of two modes:

    fast   <answer> 6              the answer at once
    slow   <think> 7 6 </think> 6  every partial sum first, then the answer

One operand can be answered at a glance; eight are hard without writing the partial sums down.
"""

from __future__ import annotations

import random

from adapt_recipes.tasks.problem import SLOW_END_TOKEN, SLOW_TOKEN, Problem, answer_text, require_int

FILLER = "."
QUESTION = "?"
MAX_DIFFICULTY = 8


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


def sound_trace(problem: Problem, completion: str) -> bool:
    """Whether the trace of `completion`, if it has one, is the partial sums in order. Raises ValueError for a problem
    of another family.
    """
    if problem.family != "running_sum":
        raise ValueError(f"only running_sum says what its traces must be; got a problem of {problem.family}")
    words = completion.split()
    if SLOW_TOKEN not in words:
        return True
    trace = words[words.index(SLOW_TOKEN) + 1 :]
    trace = trace[: trace.index(SLOW_END_TOKEN)] if SLOW_END_TOKEN in trace else trace
    start, *rest = problem.prompt.split()
    total, sums = int(start), []
    for word in rest[: problem.difficulty]:
        total = (total + int(word)) % 10
        sums.append(str(total))
    return trace == sums


def _draw(source: random.Random, difficulty: int | None) -> Problem:
    def digit() -> int:
        return int(source.random() * 10)

    count = difficulty if difficulty is not None else 1 + int(source.random() * MAX_DIFFICULTY)
    return make_problem(digit(), [digit() for _ in range(count)])
