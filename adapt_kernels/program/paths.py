"""`Paths`: which of a prompt's samples go on living: the settings, and what their values alone can refuse."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real

from adapt_kernels.program.votes import Agree

SCORES = ("confidence", "logprob", "random")
GROUP_TOKENS = 2048  # of DeepConf's windows
_SLACK = 1e-9  # so that .29 of 100 rows are 29, though the product of the floats is a little less


@dataclass(frozen=True)
class Bar:
    """DeepConf's bar: the `percentile`-th percentile of the lowest windows of each prompt's first `warmup` rows.

    Rows below it end, so percentile=10 *keeps* about 90 % of the rows and percentile=90 about 10 %. Warm-up rows never
    end by it, and it stands when the last of them has ended, since their lowest windows are known only then. One
    shorter than a window counts with its mean. Linear between neighbours, as numpy.percentile.

    Source: "Deep Think with Confidence", arXiv 2508.15260.
    """

    percentile: float
    warmup: int = 16

    def __post_init__(self):
        if isinstance(self.percentile, bool) or not isinstance(self.percentile, Real) or not 0 < self.percentile < 100:
            raise ValueError(
                f"Bar: percentile must lie inside (0, 100); got {self.percentile!r} (10 keeps about 90 % of the rows)"
            )
        _check_count("Bar: warmup", self.warmup)


@dataclass(frozen=True)
class Paths:
    """Of many samples of a prompt, let only the promising ones live: an argument of a patched model's `generate`.

    A row is one sample; rows of one prompt are those of num_return_sequences and equal prompts of the batch.

    keep, at: when rows have `at` new tokens, each prompt keeps so many of its unfinished rows (an integer >= 1), or
        that share of them (inside (0, 1); rounded down, at least one). `at` may rise, (32, 64, 128): a share is then
        taken at each, and an integer is what is left at the last, after twice as many at the one before it, and so on.
        Finished rows keep their place and are neither scored nor counted.
    score: "confidence" (DeepConf: the lowest window of token confidences, of which one is minus the mean of the `top`
        largest log-probs; high = sure; a row shorter than a window: its mean), "logprob" (mean log-prob of the tokens),
        both of the model's own distribution at T = 1; "random" (from the row's seed); a function of a `PathView` that
        returns one number per row of it, high = keep; or a `PrefixScorer`. Ties: the lower row stays. NaN comes last.
    below: rows end whose confidence over a full window lies below this number, or below a `Bar`.
    agree: an `Agree`: all unfinished rows of a prompt end as soon as its finished ones agree.
    per_mode: keep so many rows of every mode of a prompt, instead of the prompt.
    top, window: of the confidence. window=None: 2048 tokens, or the first `at` where that is less.

    Raises ValueError or TypeError that names the setting.
    """

    keep: int | float | None = None
    at: int | Sequence[int] | None = None
    score: str | Callable = "confidence"
    below: float | Bar | None = None
    agree: Agree | None = None
    per_mode: bool = False
    top: int = 20
    window: int | None = None

    def __post_init__(self):
        if self.keep is None and self.below is None and self.agree is None:
            raise ValueError("Paths: nothing ends a row: give keep and at, below, or agree")
        if (self.keep is None) != (self.at is None):
            given, missing = ("keep", "at") if self.at is None else ("at", "keep")
            raise ValueError(
                f"Paths: {given}={getattr(self, given)!r} needs {missing}: how many rows live on, and when"
            )
        if self.keep is not None:
            _check_keep(self.keep)
            object.__setattr__(self, "at", _rising(self.at))
        if isinstance(self.score, str) and self.score not in SCORES:
            raise ValueError(f"Paths: score must be {', '.join(map(repr, SCORES))} or a function; got {self.score!r}")
        if not isinstance(self.score, str) and not callable(self.score):
            raise TypeError(
                f"Paths: score must be a name, a function of a PathView or a PrefixScorer; got {self.score!r}"
            )
        if self.below is not None and not isinstance(self.below, Bar):
            _check_bar(self.below)
        if self.agree is not None and not isinstance(self.agree, Agree):
            raise TypeError(f"Paths: agree must be an adapt_kernels.Agree; got {self.agree!r}")
        _check_count("Paths: top", self.top)
        if self.window is not None:
            _check_count("Paths: window", self.window)

    @property
    def looks(self) -> tuple[int, ...]:
        """`at`: the numbers of new tokens at which rows are judged."""
        return self.at if isinstance(self.at, tuple) else ()

    @property
    def group_tokens(self) -> int:
        """Tokens of one window of the confidence."""
        return self.window or min((GROUP_TOKENS, *self.looks))

    @property
    def last_look(self) -> float:
        """New tokens after which no token's confidence or log-prob is asked for."""
        return math.inf if self.below is not None else max(self.looks, default=0)

    @property
    def reads_confidence(self) -> bool:
        return self.below is not None or (self.keep is not None and self._score_reads("confidence"))

    @property
    def reads_logprobs(self) -> bool:
        return self.keep is not None and self._score_reads("logprob")

    @property
    def own_function(self) -> bool:
        """Whether `score` is no name: it is given a `PathView`."""
        return not isinstance(self.score, str)

    @property
    def reads_tokens(self) -> bool:
        """Whether the score reads what the rows have gone through; a `PrefixScorer` computes its own."""
        return self.own_function and getattr(self.score, "reads_tokens", True)

    def _score_reads(self, name: str) -> bool:
        return self.score == name if not self.own_function else self.reads_tokens

    def kept_of(self, stage: int, unfinished: int) -> int:
        """How many of a prompt's unfinished rows live on after `at[stage]`."""
        assert self.keep is not None
        if isinstance(self.keep, Integral):
            return int(self.keep) << (len(self.looks) - 1 - stage)
        return max(1, math.floor(self.keep * unfinished + _SLACK))


def _check_keep(keep) -> None:
    if isinstance(keep, bool) or not isinstance(keep, Real):
        raise TypeError(f"Paths: keep must be a number of rows or a share of them; got {keep!r}")
    if isinstance(keep, Integral):
        if keep < 1:
            raise ValueError(f"Paths: keep must be at least 1 row; got {keep}")
    elif not 0 < float(keep) < 1:
        raise ValueError(f"Paths: keep as a share must lie inside (0, 1); got {keep} (a number of rows is an integer)")


def _rising(at) -> tuple[int, ...]:
    listed = hasattr(at, "tolist") and bool(getattr(at, "ndim", False))
    steps = tuple(at.tolist() if listed else at) if _several(at) else (at,)
    for step in steps:
        _check_count("Paths: at", step)
    if not steps or any(later <= earlier for earlier, later in zip(steps, steps[1:], strict=False)):
        raise ValueError(f"Paths: at must be new tokens, one number or rising ones such as (32, 64); got {at!r}")
    return tuple(int(step) for step in steps)


def _several(at) -> bool:
    return isinstance(at, (list, tuple)) or bool(getattr(at, "ndim", 0))


def _check_bar(below) -> None:
    if isinstance(below, bool) or not isinstance(below, Real):
        raise TypeError(f"Paths: below must be a confidence, or an adapt_kernels.Bar; got {below!r}")
    if math.isnan(below):
        raise ValueError("Paths: below must be a confidence, not NaN")


def _check_count(what: str, value) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{what} must be an integer of at least 1; got {value!r}")
    if value < 1:
        raise ValueError(f"{what} must be at least 1; got {value}")
