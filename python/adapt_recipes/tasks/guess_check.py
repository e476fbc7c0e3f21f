"""Guess and check: samples of which most are doomed early, and a token at which that can be seen.

A prompt gives six numbers and a check: what their running sum modulo 4 must be after the third. A trace begins with a
guess of where the sum starts, each as likely as any other, goes on with the partial sums, and says in the end whether
the third met the check. One guess in four does, so a quarter of all traces is right. No log-prob tells which, since
each token after the guess is certain, and before its end the text does not say it either. Prompt and guess imply it,
but only after the third sum has the model computed what tells it: a sum earlier a scorer can still add that one itself,
right after the guess it cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from adapt_recipes.tasks.problem import EOS_TOKEN
from adapt_recipes.tasks.tokenizer import BOS_TOKEN, MODE_TOKENS, SPECIAL_TOKENS

NAME = "guess_check"
MODULUS, OPERANDS, CHECKED = 4, 6, 3
_NUMBERS = tuple(f"{sign}{n}" for sign in ("+", "=", "") for n in range(MODULUS))
VOCABULARY = (*SPECIAL_TOKENS, *_NUMBERS, "?", "no", "ok", *MODE_TOKENS)
_BOS, _EOS, _QUESTION, _NO, _OK = map(VOCABULARY.index, (BOS_TOKEN, EOS_TOKEN, "?", "no", "ok"))
_ADD, _CHECK, _SUM = (VOCABULARY.index(f"{sign}0") for sign in ("+", "=", ""))
_VERDICT_WEIGHT = 4.0  # of its loss: it looks furthest back, and is learnt last
PROMPT_TOKENS = 3 + OPERANDS  # BOS, the numbers, the check, the question mark
TRACE_TOKENS = 3 + OPERANDS  # the guess, the partial sums, the verdict, EOS
BEFORE = 1  # new tokens, the guess alone: three sums away from what the check is about
AT = 1 + CHECKED  # new tokens after which the check can be made, and has not been told


class Traces(NamedTuple):
    """ids int64 [n, PROMPT_TOKENS + TRACE_TOKENS]; met bool [n]: whether the guess meets the check."""

    ids: np.ndarray
    met: np.ndarray


def draw_prompts(count: int, seed: Sequence[int]) -> np.ndarray:
    """int64 [count, PROMPT_TOKENS]."""
    draw = np.random.default_rng(list(seed))
    numbers, checks = draw.integers(0, MODULUS, (count, OPERANDS)), draw.integers(0, MODULUS, count)
    columns = _column(_BOS, count), numbers + _ADD, checks[:, None] + _CHECK, _column(_QUESTION, count)
    return np.concatenate(columns, axis=1)


def draw_traces(prompts: np.ndarray, seed: Sequence[int]) -> Traces:
    """One trace per prompt, of a guess drawn evenly."""
    guess = np.random.default_rng(list(seed)).integers(0, MODULUS, len(prompts)) + _SUM
    met = meets(prompts, guess)
    return Traces(np.concatenate([prompts, _traces(prompts, guess, met)], axis=1), met)


def draw_batch(count: int, seed: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Ids int64 of `count` traces of fresh prompts, and loss weights float32 of their shape: 0 on the prompts."""
    ids = draw_traces(draw_prompts(count, (*seed, 1)), (*seed, 2)).ids
    weights = np.zeros(ids.shape, dtype=np.float32)
    weights[:, PROMPT_TOKENS:] = 1
    weights[:, -2] = _VERDICT_WEIGHT
    return ids, weights


def meets(prompts: np.ndarray, guesses: np.ndarray) -> np.ndarray:
    """bool [n]: whether guesses [n], first new tokens, meet the check of their prompts [n, PROMPT_TOKENS]."""
    sums = (prompts[:, 1 : 1 + CHECKED] - _ADD).sum(axis=1)
    wanted = (prompts[:, 1 + OPERANDS] - _CHECK - sums) % MODULUS
    return guesses == wanted + _SUM


def right(prompts: np.ndarray, new_tokens: np.ndarray) -> np.ndarray:
    """bool [n]: whether new tokens [n, T] are the one right trace of their prompts, to its end."""
    if new_tokens.shape[1] < TRACE_TOKENS:
        return np.zeros(len(prompts), dtype=bool)
    met = meets(prompts, new_tokens[:, 0])
    return met & (new_tokens[:, :TRACE_TOKENS] == _traces(prompts, new_tokens[:, 0], met)).all(axis=1)


def _traces(prompts: np.ndarray, guesses: np.ndarray, met: np.ndarray) -> np.ndarray:
    numbers = prompts[:, 1 : 1 + OPERANDS] - _ADD
    sums = np.cumsum(np.column_stack([guesses - _SUM, numbers]), axis=1) % MODULUS + _SUM
    verdicts = np.where(met, _OK, _NO)[:, None]
    return np.concatenate([sums, verdicts, _column(_EOS, len(prompts))], axis=1)


def _column(token: int, rows: int) -> np.ndarray:
    return np.full((rows, 1), token)
