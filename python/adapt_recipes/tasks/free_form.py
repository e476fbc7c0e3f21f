"""Free-form mathematics: problems from a file, answers compared as mathematics by `math-verify`.

For models of any kind: the answer is the last formula or number of the completion (`\\boxed{...}` first), so ``1/2``,
``0.5`` and ``\\frac{1}{2}`` are the same answer. Needs the extra `tasks` (math-verify).
"""

from __future__ import annotations

import json
import logging
import threading
from functools import cache
from pathlib import Path

from adapt_recipes import extras
from adapt_recipes.tasks.problem import SLOW_END_TOKEN, Problem

NAME = "math"
SECONDS = 5  # for reading or comparing one answer


def read_problems(path: str | Path) -> list[Problem]:
    """Problems of a JSON Lines file: objects with "prompt", "answer" and, where known, an integer "difficulty".

    Raises ValueError naming the line that is not such an object.
    """
    found = []
    for number, line in enumerate(Path(path).read_text("utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            prompt, answer, difficulty = item["prompt"], item["answer"], item.get("difficulty", 0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f'{path}:{number} must be an object with "prompt" and "answer", got {line!r}') from error
        if not isinstance(prompt, str) or not isinstance(answer, str | int | float) or not isinstance(difficulty, int):
            raise ValueError(f'{path}:{number}: "prompt" is text, "answer" text or a number, "difficulty" an integer')
        found.append(Problem(prompt, str(answer), difficulty, NAME))
    if not found:
        raise ValueError(f"{path} holds no problem")
    return found


def problems(n: int, difficulty: int | None = None, seed: int = 0) -> list[Problem]:
    """Always an error: this family draws no problems, it reads them."""
    raise ValueError(f"the task family {NAME} has no generator: give a JSON Lines file of problems (--data)")


def grade(problem: Problem, completion: str) -> bool:
    """Whether what follows the trace in `completion` states an answer equal to `problem.answer`; never raises."""
    math_verify = _math_verify()
    # Its time limits are signals, which only the main thread can take.
    limit = SECONDS if threading.current_thread() is threading.main_thread() else None
    # Plain text is no formula to the parser; in dollars "1/2" is read as one.
    gold = math_verify.parse(f"${problem.answer}$", parsing_timeout=limit)
    given = math_verify.parse(completion.rpartition(SLOW_END_TOKEN)[2], parsing_timeout=limit)
    return bool(gold and given) and bool(math_verify.verify(gold, given, timeout_seconds=limit))


def require() -> None:
    """Raise RuntimeError, saying how to get it, when math-verify is not installed."""
    extras.require("math-verify", "tasks", f"the task family {NAME}")


@cache
def _math_verify():
    require()
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of every answer it cannot read
    return math_verify
