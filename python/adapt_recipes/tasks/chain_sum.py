"""A second task family: `chain_sum` of reasoning-gym, whose difficulty is the number of terms.

The prompt is reasoning-gym's own question, ``State the final answer to the following arithmetic problem: 4 - 3 + 8 =``,
over one-digit terms, and the grader is its own scorer. Only the traces that teach a model are written here:

    fast   <answer> 9                      the answer at once
    slow   <think> 4 - 1 + 9 </think> 9    the running total after every term, then the answer

Needs the extra `tasks` (reasoning-gym).
"""

from __future__ import annotations

import hashlib
from functools import cache

from adapt_recipes import extras
from adapt_recipes.tasks.problem import FAST_TOKEN, SLOW_END_TOKEN, SLOW_TOKEN, Problem, answer_text, require_int

NAME = "chain_sum"
MIN_TERMS, MAX_TERMS = 2, 6
DIFFICULTIES = tuple(range(MIN_TERMS, MAX_TERMS + 1))
LARGEST = 9 * MAX_TERMS  # no partial sum is larger, whatever its sign
RIGHT = 1.0  # the scorer gives partial credit to an answer that only contains the right one


def problems(n: int, difficulty: int | None = None, seed: int = 0) -> list[Problem]:
    """Draw `n` problems of `difficulty` terms (2 to 6; None: uniform); the same arguments give the same problems."""
    require_int("n", n, minimum=0)
    require_int("seed", seed)
    if difficulty is not None:
        require_int("difficulty", difficulty, MIN_TERMS, MAX_TERMS, alternative="None (uniform)")
    return draw(n, difficulty, f"{seed}")


def draw(n: int, difficulty: int | None, stream: str) -> list[Problem]:
    """As `problems`, from the random stream called `stream`."""
    if n == 0:
        return []
    least, most = (MIN_TERMS, MAX_TERMS) if difficulty is None else (difficulty, difficulty)
    # reasoning-gym's item i of seed s is item 0 of seed s + i: neighbouring seeds would share their problems.
    digest = hashlib.sha256(f"{NAME} {stream} {difficulty}".encode()).digest()
    drawn = _gym().create_dataset(
        NAME, min_terms=least, max_terms=most, min_digits=1, max_digits=1, size=n, seed=int.from_bytes(digest[:8])
    )
    return [Problem(item["question"], item["answer"], item["metadata"]["num_terms"], NAME) for item in drawn]


def grade(problem: Problem, completion: str) -> bool:
    """Whether reasoning-gym's scorer gives the answer in `completion` full marks; a malformed completion is wrong."""
    answer = answer_text(completion)
    return answer is not None and _scorer().score_answer(answer, {"answer": problem.answer}) >= RIGHT


def response(problem: Problem, slow: bool) -> str:
    """The completion that teaches a mode: the answer alone, or the running totals before it."""
    if not slow:
        return f"{FAST_TOKEN} {problem.answer}"
    return f"{SLOW_TOKEN} {running_totals(problem.prompt)} {SLOW_END_TOKEN} {problem.answer}"


def running_totals(prompt: str) -> str:
    """The expression of `prompt` with every term replaced by the total so far: "4 - 3 + 8" gives "4 - 1 + 9".

    One word for each word of the expression, so a model reads every trace word at one distance from its source.
    """
    words = prompt.rpartition(":")[2].removesuffix("=").split()
    total = int(words[0])
    for i in range(1, len(words), 2):
        total += int(words[i] + words[i + 1])
        words[i + 1] = str(total)
    return " ".join(words)


def require() -> None:
    """Raise RuntimeError, saying how to get it, when reasoning-gym is not installed."""
    extras.require("reasoning-gym", "tasks", f"the task family {NAME}")


@cache
def _gym():
    require()
    import reasoning_gym  # seconds: it brings a hundred tasks

    return reasoning_gym


@cache
def _scorer():
    return _gym().create_dataset(NAME, size=1, seed=0)
