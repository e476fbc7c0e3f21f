"""Votes of a prompt's samples: when they agree enough for the others to stop, and who has won."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import torch

VOTERS = ("finished", "length")  # ends of rows that were not cut off


@dataclass(frozen=True)
class Agree:
    """When the finished rows of a prompt agree, its unfinished ones end. One of k, beta and share is given.

    k: so many equal answers. beta: the commonest answer's chance to be the majority, from the counts of the two
    commonest (Adaptive-Consistency). share: the commonest answer's share of all answers, once there are `least`.
    answer: fn(ids) -> a hashable answer, or None where the row has none; ids int64 [length]: a row's new tokens, on
    the CPU. Asked once, when the row ends by itself.

    Source: "Let's Sample Step by Step" (Adaptive-Consistency), arXiv 2305.11860; STOP, arXiv 2604.16029, uses k=4.
    """

    k: int | None = None
    beta: float | None = None
    share: float | None = None
    answer: Callable = None  # type: ignore[assignment]  # required, behind fields that are not
    least: int = 4

    def __post_init__(self):
        given = [name for name in ("k", "beta", "share") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"Agree: give one of k, beta and share; got {', '.join(given) or 'none'}")
        if not callable(self.answer):
            raise TypeError(f"Agree: answer must be a function of a row's new tokens; got {self.answer!r}")
        for name in ("k", "least"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < 1):
                raise ValueError(f"Agree: {name} must be an integer of at least 1; got {value!r}")
        for name in ("beta", "share"):
            value = getattr(self, name)
            number = isinstance(value, Real) and not isinstance(value, bool)
            if value is not None and not (number and 0 < value <= 1):
                raise ValueError(f"Agree: {name} must lie in (0, 1]; got {value!r}")

    def holds(self, counts: Sequence[int]) -> bool:
        """Whether answers that came so often, in any order, agree."""
        first, second = (sorted(counts, reverse=True) + [0, 0])[:2]
        if not first:
            return False
        if self.k is not None:
            return first >= self.k
        if self.beta is not None:
            return majority_chance(first, second) >= self.beta
        assert self.share is not None
        return sum(counts) >= self.least and first >= self.share * sum(counts)


def majority_chance(first: int, second: int) -> float:
    """1 - I_.5(first + 1, second + 1): how sure it is that the commonest of two answers is the commoner one.

    Equal to P(Bin(first + second + 1, .5) <= first), which integers give exactly.
    """
    tosses = first + second + 1
    return sum(math.comb(tosses, heads) for heads in range(first + 1)) / 2**tosses


def answer_of(answer: Callable, ids: torch.Tensor, row: int) -> Hashable:
    """A row's answer; tensors and arrays in it become numbers, since tensors hash by identity.

    Raises TypeError for an answer that cannot be compared by its hash.
    """
    found = _plain(answer(ids))
    try:
        hash(found)
    except TypeError:
        raise TypeError(
            f"answer must return something hashable (a number, a text, a tuple) or None; got {found!r} for row {row}"
        ) from None
    return found


def _plain(value):
    if hasattr(value, "tolist"):
        value = value.tolist()
        return tuple(value) if isinstance(value, list) else value
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value


def vote(out, answer: Callable, weights=None) -> list:
    """The answer that most rows of each prompt give, in order of the prompts' first rows; None where none gives one.

    Args:
        out: a patched model's output under return_dict_in_generate=True. Rows that `paths` cut off do not vote.
        answer: fn(ids) -> a hashable answer or None, as of `Agree`.
        weights: None (one each), "path_score", or one number >= 0 per row, [rows]. Under "path_score" a row that was
            not scored, such as one that ended before `at`, weighs as much as its prompt's scored voters on average.

    Ties: the answer whose first vote comes from the lower row. Reads the tokens from the device.

    Raises ValueError or TypeError: an output that does not say which rows share a prompt, weights that are no weights,
    an answer that is not hashable.
    """
    if getattr(out, "prompt_of_row", None) is None:
        raise ValueError(
            "vote: out does not say which rows share a prompt: call generate of a patched model with"
            " return_dict_in_generate=True, on a plan other than 'original' (out.stats.plan)"
        )
    prompts, lengths = out.prompt_of_row.tolist(), out.lengths.tolist()
    new_tokens = out.sequences[:, out.prompt_length :].cpu()
    ends = out.path_ends or ["finished"] * len(prompts)
    voters = [row for row, end in enumerate(ends) if end in VOTERS]
    weight = _weights(out, weights, prompts, voters)
    totals: dict[int, dict] = {prompt: {} for prompt in prompts}
    for row in voters:
        given = answer_of(answer, new_tokens[row, : lengths[row]], row)
        if given is not None:
            tally = totals[prompts[row]]
            tally[given] = tally.get(given, 0.0) + weight[row]
    return [max(tally, key=tally.__getitem__) if tally else None for tally in totals.values()]


def _weights(out, weights, prompts: list[int], voters: list[int]) -> list[float]:
    if weights is None:
        return [1.0] * len(prompts)
    if isinstance(weights, str):
        if weights != "path_score":
            raise ValueError(f"vote: weights must be None, 'path_score' or one number per row; got {weights!r}")
        if out.path_scores is None:
            raise ValueError("vote: weights='path_score' needs a call with paths=")
        values = _filled(out.path_scores.tolist(), prompts, voters)
        remedy = "; 'logprob' and scores of your own may be: leave weights out, or pass your own"
    else:
        values, remedy = torch.as_tensor(weights, dtype=torch.float64).tolist(), ""
        if not isinstance(values, list) or len(values) != len(prompts):
            raise ValueError(f"vote: weights must be one number per row ({len(prompts)}); got {weights!r}")
    for row in voters:
        if not values[row] >= 0:
            raise ValueError(f"vote: weights must be numbers >= 0; row {row} has {values[row]}{remedy}")
    return values


def _filled(scores: list[float], prompts: list[int], voters: list[int]) -> list[float]:
    """Scores with a prompt's mean (1 where it has none) for the rows that have none."""
    sums: dict[int, float] = defaultdict(float)
    counts: Counter[int] = Counter()
    for row in voters:
        if not math.isnan(scores[row]):
            sums[prompts[row]] += scores[row]
            counts[prompts[row]] += 1
    mean = {prompt: sums[prompt] / counts[prompt] for prompt in counts}
    return [mean.get(p, 1.0) if math.isnan(s) else s for s, p in zip(scores, prompts, strict=True)]
