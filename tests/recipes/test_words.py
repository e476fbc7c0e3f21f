"""Questions in words: every worked solution is right, levels are operations, and no evaluated prompt is trained on."""

import random
import re
from collections import Counter
from hashlib import sha256
from itertools import islice

import pytest

import adapt_recipes as ar
from adapt_recipes.evaluation.frontier import spread_problems
from adapt_recipes.tasks import words
from adapt_recipes.tasks.families import family_of
from adapt_recipes.training.rl import training_problems
from adapt_recipes.training.rl_config import RlConfig


def worked(family, level, count=60):
    weights = tuple(float(each == level) for each in words.LEVELS)
    drawn = words.draw(random.Random(f"{family} {level}"), weights, family)
    return [next(drawn) for _ in range(count)]


CASES = [(kind, level) for kind in words.KINDS for level in words.LEVELS]
LEGS = {"hen": 2, "duck": 2, "dog": 4, "cat": 4, "cow": 4, "ant": 6, "bee": 6, "spider": 8}
LEGS |= dict.fromkeys(("eel", "slug", "snake", "worm"), 0)


def answer_by_reading(prompt, kind):
    """The answer from the text of the question, by another way than the one that wrote it."""
    if kind == "sums":
        return str(sum(map(int, re.findall(r"\d+", prompt))))
    if kind == "legs":
        found = re.findall(rf"(\d+|an?) ({'|'.join(LEGS)})", prompt)
        return str(sum((int(count) if count.isdigit() else 1) * LEGS[animal] for count, animal in found))
    if kind == "stories":
        first, *changes = re.findall(r"(?:(has|buys|finds|gets|gives away|loses|sells) )(\d+)", prompt)
        signs = {"buys": 1, "finds": 1, "gets": 1, "gives away": -1, "loses": -1, "sells": -1}
        return str(int(first[1]) + sum(signs[verb] * int(number) for verb, number in changes))
    holder = prompt.split()[0]
    for one, other in re.findall(r"(\w+) and (\w+)", prompt):
        holder = {one: other, other: one}.get(holder, holder)
    return holder


def operations(each):
    """(left, right, written result, its true value) of every operation in the steps."""
    apply = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    found = re.findall(r"(\d+)([+*-])(\d+)(?==(\d+))", each.steps)
    return [(int(a), int(b), int(c), apply[sign](int(a), int(b))) for a, sign, b, c in found]


@pytest.mark.parametrize(("kind", "level"), CASES)
def test_worked_solutions_are_right(kind, level):
    for each in worked(kind, level):
        problem = each.problem
        assert problem.answer == answer_by_reading(problem.prompt, kind)
        assert (problem.difficulty, problem.family) == (level, kind)
        if kind == "swaps":
            assert each.steps.count(":") == level and each.steps.endswith(f": {problem.answer}")
        else:
            assert len(operations(each)) == level and each.steps.endswith(f"={problem.answer}")
            assert all(result == expected for *_, result, expected in operations(each))
        assert ar.grade(problem, each.response(slow=False)) and ar.grade(problem, each.response(slow=True))


def counted_steps(each):
    """How many steps level - 1 counts: another holder, or a product or sum without a zero."""
    if each.problem.family == "swaps":
        holders = [each.problem.prompt.split()[0], *re.findall(r": (\w+)", each.steps)]
        return sum(one != other for one, other in zip(holders, holders[1:], strict=False))
    return sum(left > 0 and right > 0 for left, right, *_ in operations(each))


@pytest.mark.parametrize("level", words.LEVELS)
def test_idle_words_have_four_steps_of_which_level_minus_1_count(level):
    drawn = worked("idle_words", level, 240)
    assert Counter(each.problem.family for each in drawn) == dict.fromkeys(words.KINDS, 60)
    for each in drawn:
        problem = each.problem
        assert problem.answer == answer_by_reading(problem.prompt, problem.family) and problem.difficulty == level
        assert counted_steps(each) == level - 1 and each.steps.endswith((f": {problem.answer}", f"={problem.answer}"))
        if problem.family == "swaps":
            assert each.steps.count(":") == words.IDLE_STEPS
        else:
            assert len(operations(each)) == words.IDLE_STEPS
            assert all(result == expected for *_, result, expected in operations(each))
        assert ar.grade(problem, each.response(slow=False)) and ar.grade(problem, each.response(slow=True))


def test_an_easy_idle_question_takes_as_long_a_solution_as_a_hard_one():
    easiest, hardest = (sum(len(each.steps) for each in worked("idle_words", level)) for level in (1, 5))
    assert 0.8 * hardest < easiest <= hardest


@pytest.mark.parametrize("kind", [words.IDLE_NAME, *words.KINDS])
def test_numbers_stay_small(kind):
    for level in words.LEVELS:
        for each in worked(kind, level):
            assert all(0 <= int(number) <= words.LARGEST for number in re.findall(r"(?:^|[=*+-])(-?\d+)", each.steps))


def test_known_problems():
    """Frozen: other problems would make every committed figure another one."""
    drawn = [(problem.prompt, problem.answer, problem.family) for problem in ar.problems(4, 2, seed=7, family="words")]
    assert drawn == [
        ("What is 5 plus 2 plus 3?", "10", "sums"),
        ("How many legs do a cat and 5 ants have?", "34", "legs"),
        ("Amy has 7 coins. She finds 9 and buys 1. How many coins does she have?", "17", "stories"),
        ("Ann holds the hat. Ann and Sam swap what they hold, then Ben and Sam. Who holds the hat?", "Ben", "swaps"),
    ]


def test_all_draws_are_frozen():
    """Every family, level and side, steps included: the shipped adapters were trained on these."""
    digest = sha256()
    for family in words.NAMES:
        for held_out in (True, False):
            drawn = words.draw(random.Random(f"{family}{held_out}"), (1.0,) * 5, family, held_out)
            for each in islice(drawn, 300):
                digest.update(
                    repr((each.problem.prompt, each.problem.answer, each.problem.difficulty, each.steps)).encode()
                )
    assert digest.hexdigest()[:16] == "3c612428958b4a35"


def test_known_idle_problems():
    drawn = [(problem.prompt, problem.answer, problem.family) for problem in ar.problems(4, 3, 7, "idle_words")]
    assert drawn == [
        ("What is 3 plus 0 plus 3 plus 5 plus 0?", "11", "sums"),
        ("A farm has 4 worms, 3 spiders and a hen. How many legs is that?", "26", "legs"),
        (
            "Eva has 6 pens. She buys none, finds none, gets 1 and buys 6. How many pens does she have?",
            "13",
            "stories",
        ),
        (
            "Eva holds the ring. Tom and Amy swap what they hold, then Amy and Eva, then Eva and Amy, then Amy and Tom."
            " Who holds the ring?",
            "Eva",
            "swaps",
        ),
    ]


@pytest.mark.parametrize("family", words.NAMES)
def test_what_is_evaluated_is_never_trained_on(family):
    evaluated = {problem.prompt for problem in ar.problems(400, seed=3, family=family)}
    trained = {problem.prompt for problem in words.training_problems(400, seed=3, family=family)}
    assert not evaluated & trained and all(map(words.is_held_out, evaluated))
    assert family_of(family).training_problems(5, None, 1) == words.training_problems(5, seed=1, family=family)


@pytest.mark.parametrize("task", ["words", "idle_words"])
def test_reinforcement_trains_on_the_training_side(task):
    drawn = training_problems(RlConfig(task=task, iterations=3, prompts=8))
    assert len(drawn) == 24 and not any(words.is_held_out(problem.prompt) for problem in drawn)
    assert {problem.family for problem in drawn} == set(words.KINDS)


@pytest.mark.parametrize("task", ["words", "idle_words"])
def test_levels_and_kinds_are_spread_evenly(task):
    drawn = spread_problems(task, 100, seed=5)
    assert Counter(problem.difficulty for problem in drawn) == dict.fromkeys(words.LEVELS, 20)
    assert Counter(problem.family for problem in drawn) == dict.fromkeys(words.KINDS, 25)
    assert drawn == spread_problems(task, 100, seed=5) != spread_problems(task, 100, seed=6)
    assert ar.problems(0, family="words") == []


SUM = ar.Problem("What is 5 plus 1?", "6", 1, "sums")


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("<answer>6", True),
        ("<answer>6<|im_end|>", True),
        ("<think>5+1=6</think>6<|im_end|>\n<|im_end|>", True),
        ("<think>5+1=7</think> 6", True),
        ("5+1=6</think>6", True),
        ("6", True),
        ("<answer>7", False),
        ("<answer>6 6", False),
        ("<answer>61", False),
        ("<think>5+1=6", False),
        ("<think>5+1=6</think>", False),
        ("<answer>6<think>5+1=6</think>6", False),
        ("<|im_end|><answer>6 pens", False),
        ("", False),
    ],
)
def test_grader(completion, right):
    assert ar.grade(SUM, completion) is right


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((1, 6, 0), r"difficulty must be an integer from 1 to 5 or None \(uniform\), got 6"),
        ((-1, None, 0), "n must be an integer of at least 0, got -1"),
        ((1, None, "a"), "seed must be an integer, got 'a'"),
    ],
)
def test_arguments_that_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        words.problems(*arguments)
    with pytest.raises(ValueError, match="task must be one of words, idle_words, sums, legs, stories, swaps"):
        words.problems(1, family="math")
