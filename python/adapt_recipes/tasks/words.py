"""Questions in words of four kinds, for a real language model, with levels 1 to 5: in `words` the operations they take.

    sums     What is 3 plus 5 plus 2?                                       3+5=8+2=10
    legs     How many legs do 3 hens and a dog have?                        3*2=6, 6+4=10
    stories  Tom has 5 pens. He buys 3 and loses 4. How many pens ...?      5+3=8-4=4
    swaps    Tom holds the key. Tom and Ann swap what they hold, then ...   Tom and Ann: Ann, Ann and Ben: Ben

`words` draws all four in equal parts. Fast answers at once, slow writes the worked steps on the right first:

    fast   <answer>10
    slow   <think>3+5=8+2=10</think>10

In `words` an easy question also has a short solution, and skipping it saves little. `idle_words` has as long solutions
at every level: four steps, of which level - 1 are without a zero (of swaps: with the holder in the pair); the others
add 0 or add to 0, count the legs of a snake, or swap what the two others hold.

A fifth of all prompts, chosen by their hash, is kept out of training; what `problems` draws comes from that fifth.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256

from adapt_recipes.tasks.problem import FAST_TOKEN, SLOW_END_TOKEN, SLOW_TOKEN, Problem, answer_text, require_int

NAME, IDLE_NAME = "words", "idle_words"
IDLE_STEPS = 4  # that a solution of `idle_words` has; even, for then one animal is alone in `_legs`
LEVELS = (1, 2, 3, 4, 5)
MAX_NEW_TOKENS = 64  # no worked answer is longer
HELD_OUT = 5  # one prompt in so many is never trained on
LARGEST = 40  # no total of legs is larger
STOCK = 18  # no stock in a story is larger

_LEGS = {"hen": 2, "duck": 2, "dog": 4, "cat": 4, "cow": 4, "ant": 6, "bee": 6, "spider": 8}
_LEGLESS = ("eel", "slug", "snake", "worm")
_PEOPLE = {"Tom": "he", "Ben": "he", "Sam": "he", "Max": "he", "Ann": "she", "Eva": "she", "Mia": "she", "Amy": "she"}
_ITEMS = ("pens", "eggs", "cards", "coins", "books", "apples")
_GAINS, _LOSSES = ("buys", "finds", "gets"), ("gives away", "loses", "sells")
_TREASURES = ("key", "ring", "ball", "hat")
_CHAT_END = re.compile(r"(<\|im_end\|>|<\|endoftext\|>|\s)+$")


@dataclass(frozen=True)
class Worked:
    """A problem and the steps that solve it."""

    problem: Problem
    steps: str

    def response(self, slow: bool) -> str:
        """The completion that teaches a mode."""
        if not slow:
            return FAST_TOKEN + self.problem.answer
        return f"{SLOW_TOKEN}{self.steps}{SLOW_END_TOKEN}{self.problem.answer}"


def problems(n: int, difficulty: int | None = None, seed: int = 0, family: str = NAME) -> list[Problem]:
    """Draw `n` problems that no training sees; the same arguments give the same problems on every machine.

    difficulty: 1 to 5, None draws it uniformly for each problem. Draws are independent, so easy ones repeat.
    """
    return [worked.problem for worked in _checked_draw(n, difficulty, seed, family, held_out=True)]


def training_problems(n: int, difficulty: int | None = None, seed: int = 0, family: str = NAME) -> list[Problem]:
    """As `problems`, of the prompts that may be trained on."""
    return [worked.problem for worked in _checked_draw(n, difficulty, seed, family, held_out=False)]


def _checked_draw(n: int, difficulty: int | None, seed: int, family: str, held_out: bool) -> list[Worked]:
    require_int("n", n, minimum=0)
    require_int("seed", seed)
    if difficulty is not None:
        require_int("difficulty", difficulty, LEVELS[0], LEVELS[-1], alternative="None (uniform)")
    source = random.Random(f"adapt-words {family} {seed} {difficulty} {held_out}")
    weights = (1.0,) * len(LEVELS) if difficulty is None else tuple(float(level == difficulty) for level in LEVELS)
    drawn = draw(source, weights, family, held_out)
    return [next(drawn) for _ in range(n)]


def draw(
    source: random.Random, level_weights: tuple[float, ...], family: str = NAME, held_out: bool = False
) -> Iterator[Worked]:
    """Worked problems of `family` without end: its kinds in turn, levels by their weights, and none of the other side
    of the split."""
    kinds = kinds_of(family)
    while True:
        for kind in kinds:
            (level,) = source.choices(LEVELS, level_weights)
            sizes = (IDLE_STEPS, level - 1) if family == IDLE_NAME else (level, None)
            while True:
                prompt, answer, steps = _KINDS[kind](source, *sizes)
                if is_held_out(prompt) == held_out:
                    break
            yield Worked(Problem(prompt, answer, level, kind), steps)


def kinds_of(family: str) -> tuple[str, ...]:
    """The kinds that `family` draws in turn: all of them for "words" and "idle_words", or the one it names. ValueError
    for any other."""
    if family not in NAMES:
        raise ValueError(f"task must be one of {', '.join(NAMES)} (questions in words), got {family!r}")
    return (family,) if family in _KINDS else KINDS


def is_held_out(prompt: str) -> bool:
    """Whether `prompt` is kept out of training."""
    return sha256(prompt.encode()).digest()[0] % HELD_OUT == 0


def grade(problem: Problem, completion: str) -> bool:
    """Whether exactly the answer follows the mode token or the closed trace in `completion`; chat ends are ignored."""
    return answer_text(_CHAT_END.sub("", completion)) == problem.answer


def grade_free(problem: Problem, text: str) -> bool:
    """Whether the last number, or the last name, of free text is the answer: for a model that knows no modes."""
    pattern = r"\d+" if problem.answer.isdigit() else "|".join(_PEOPLE)
    found = re.findall(rf"\b(?:{pattern})\b", text)
    return bool(found) and found[-1] == problem.answer


def _chosen(source: random.Random, places: int, count: int | None) -> list[bool]:
    """Flags of `count` of the places; None: of all."""
    if count is None:
        return [True] * places
    chosen = source.sample(range(places), count)
    return [place in chosen for place in range(places)]


def _sums(source: random.Random, steps: int, changing: int | None) -> tuple[str, str, str]:
    """Where some steps change nothing, the terms that are no zero may stand anywhere."""
    counted = _chosen(source, steps + 1, None if changing is None else changing + 1)
    terms = [source.randint(1, 6) if counts else 0 for counts in counted]
    total, worked = _chain(terms[0], terms[1:])
    asked = source.choice((
        f"What is {' plus '.join(map(str, terms))}?",
        f"The dice show {_listed(map(str, terms))}. What is the sum?",
    ))  # fmt: skip
    return asked, total, worked


def _legs(source: random.Random, steps: int, changing: int | None) -> tuple[str, str, str]:
    """A kind takes a product, every further one a sum; at an even number one animal is alone, and takes no product."""
    total = LARGEST + 1
    while total > LARGEST:
        animals = source.sample(sorted(_LEGS), steps // 2 + 1)
        counts = [source.randint(2, 5) for _ in animals]
        if steps % 2 == 0:
            counts[source.randrange(len(counts))] = 1
        if changing is not None:
            animals = _some_legless(source, animals, counts, changing)
        legs = [count * _LEGS.get(animal, 0) for count, animal in zip(counts, animals, strict=True)]
        total = sum(legs)
    herd = _listed(_counted(count, animal) for count, animal in zip(counts, animals, strict=True))
    worked, so_far = [], None
    for count, animal, own in zip(counts, animals, legs, strict=True):
        if count > 1:
            worked.append(f"{count}*{_LEGS.get(animal, 0)}={own}")
        if so_far is not None:
            worked.append(f"{so_far}+{own}={so_far + own}")
        so_far = own + (so_far or 0)
    asked = source.choice((f"How many legs do {herd} have?", f"A farm has {herd}. How many legs is that?"))
    return asked, str(total), ", ".join(worked)


def _some_legless(source: random.Random, animals: list[str], counts: list[int], changing: int) -> list[str]:
    """The animals with legless ones among them, so that `changing` of the products and sums are without a zero: k kinds
    in herds with legs give 2k - 1 such, and 2k beside a lone animal with legs."""
    herds = [i for i, count in enumerate(counts) if count > 1]
    legged = source.sample(herds, (changing + 1) // 2) + ([counts.index(1)] if changing % 2 == 0 else [])
    legless = iter(source.sample(_LEGLESS, len(animals) - len(legged)))
    return [animal if i in legged else next(legless) for i, animal in enumerate(animals)]


def _stories(source: random.Random, steps: int, changing: int | None) -> tuple[str, str, str]:
    name, item = source.choice(sorted(_PEOPLE)), source.choice(_ITEMS)
    first = stock = source.randint(2, 9)
    moves, told = [], []
    for changes in _chosen(source, steps, changing):
        gains = source.random() < 0.5 if 1 < stock < STOCK else stock <= 1
        move = 0
        if changes:
            move = source.randint(1, min(9, STOCK - stock)) if gains else -source.randint(1, min(9, stock - 1))
        moves.append(move)
        told.append(f"{source.choice(_GAINS if gains else _LOSSES)} {abs(move) or 'none'}")
        stock += move
    total, worked = _chain(first, moves)
    who = _PEOPLE[name]
    asked = f"{name} has {first} {item}. {who.title()} {_listed(told)}. How many {item} does {who} have?"
    return asked, total, worked


def _swaps(source: random.Random, steps: int, changing: int | None) -> tuple[str, str, str]:
    people = source.sample(sorted(_PEOPLE), 3)
    holder, treasure = source.choice(people), source.choice(_TREASURES)
    asked = f"{holder} holds the {treasure}. "
    pairs, worked = [], []
    for changes in _chosen(source, steps, changing):
        pair = source.sample(people, 2)
        while changing is not None and (holder in pair) != changes:
            pair = source.sample(people, 2)
        if holder in pair:
            holder = pair[1 - pair.index(holder)]
        pairs.append(" and ".join(pair))
        worked.append(f"{pairs[-1]}: {holder}")
    later = "".join(f", then {pair}" for pair in pairs[1:])
    asked += f"{pairs[0]} swap what they hold{later}. Who holds the {treasure}?"
    return asked, holder, ", ".join(worked)


_KINDS: dict[str, Callable[[random.Random, int, int | None], tuple[str, str, str]]] = {
    "sums": _sums, "legs": _legs, "stories": _stories, "swaps": _swaps,
}  # fmt: skip
KINDS = tuple(_KINDS)
NAMES = (NAME, IDLE_NAME, *KINDS)


def _chain(first: int, changes: list[int]) -> tuple[str, str]:
    total, steps = first, str(first)
    for change in changes:
        total += change
        steps += f"{change:+d}={total}"
    return str(total), steps


def _listed(parts: Iterator[str] | list[str]) -> str:
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last


def _counted(count: int, animal: str) -> str:
    if count > 1:
        return f"{count} {animal}s"
    return f"an {animal}" if animal[0] in "aeiou" else f"a {animal}"
