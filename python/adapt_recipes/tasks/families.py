"""The task families by name: where problems come from and who grades them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from adapt_recipes.tasks import chain_sum, free_form, running_sum, words
from adapt_recipes.tasks.problem import Problem


@dataclass(frozen=True)
class Family:
    """One kind of problem.

    difficulties: from easiest to hardest; empty where the family reads its problems from a file.
    problems(n, difficulty, seed) draws, grade(problem, completion) judges, require() raises RuntimeError when a package
    that they need is missing. training_problems draws what may be trained on, where that is not all; None: `problems`.
    """

    name: str
    difficulties: tuple[int, ...]
    problems: Callable[[int, int | None, int], list[Problem]]
    grade: Callable[[Problem, str], bool]
    require: Callable[[], None] = lambda: None
    training_problems: Callable[[int, int | None, int], list[Problem]] | None = None


def _words(name: str) -> Family:
    drawn, trained = (partial(draw, family=name) for draw in (words.problems, words.training_problems))
    return Family(name, words.LEVELS, drawn, words.grade, training_problems=trained)


FAMILIES = {
    family.name: family
    for family in (
        Family("running_sum", tuple(range(1, running_sum.MAX_DIFFICULTY + 1)), running_sum.problems, running_sum.grade),
        Family(chain_sum.NAME, chain_sum.DIFFICULTIES, chain_sum.problems, chain_sum.grade, chain_sum.require),
        Family(free_form.NAME, (), free_form.problems, free_form.grade, free_form.require),
        *map(_words, words.NAMES),
    )
}


def family_of(name: str) -> Family:
    """The family called `name`; ValueError naming all of them for any other name."""
    if name not in FAMILIES:
        raise ValueError(f"no task family is named {name!r}; there is: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def problems(n: int, difficulty: int | None = None, seed: int = 0, family: str = "running_sum") -> list[Problem]:
    """Draw `n` problems; the same arguments give the same problems on every machine.

    difficulty: one of the family's (running_sum: operands, 1 to 8; chain_sum: terms, 2 to 6) for all of them; None
    draws it uniformly for each problem. Problems are independent draws, so easy ones repeat: difficulty 1 of
    running_sum has only 100 different prompts. Raises ValueError for other arguments, RuntimeError when the family
    needs a package that is not installed.
    """
    return family_of(family).problems(n, difficulty, seed)


def grade(problem: Problem, completion: str) -> bool:
    """Whether `completion`, the decoded new text, answers `problem` correctly; its family's grader decides.

    running_sum, chain_sum: one answer after the mode token or after a closed trace, trailing end and padding tokens
    ignored; a trace that was never closed, or anything after the answer, is wrong. What the trace says is not judged.
    math: the last formula or number after the trace, compared as mathematics.
    """
    return family_of(problem.family).grade(problem, completion)
