"""Remember the marked: a long thought of which the answer needs little.

A prompt asks for two of eight letters. The thought goes through all eight in their order, each one token that fuses it
with a digit drawn evenly, and four fillers, the first of which marks the letters that were asked for: as the first, or
as the second. The answer repeats the two digits, in the order of the question. What it needs is two tokens of forty;
which ones, the model knows when it writes the mark.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np

from adapt_recipes.tasks.problem import EOS_TOKEN, SLOW_END_TOKEN, SLOW_TOKEN
from adapt_recipes.tasks.tokenizer import BOS_TOKEN, DIGITS, MODE_TOKENS, SPECIAL_TOKENS

NAME = "recall"
LETTERS, ASKED, FILLERS = "abcdefgh", 2, 4
FILLER, QUESTION, ANSWER = ".", "?", "="
MARKS = ("!1", "!2")
_FUSED = tuple(f"{letter}{digit}" for letter in LETTERS for digit in DIGITS)
VOCABULARY = (*SPECIAL_TOKENS, *LETTERS, *DIGITS, *_FUSED, FILLER, *MARKS, QUESTION, ANSWER, *MODE_TOKENS)
_LETTER, _DIGIT, _FIRST = VOCABULARY.index("a"), VOCABULARY.index("0"), VOCABULARY.index("a0")
_STRIDE = 1 + FILLERS
THOUGHT = len(LETTERS) * _STRIDE
PROMPT_TOKENS = 1 + ASKED + 2  # BOS, the letters, the question mark, the opening of the thought
NEW_TOKENS = THOUGHT + 2 + ASKED + 1  # the thought, its end, the equals sign, the digits, EOS
_SURELY = 50.0  # in logits
# Of a token's loss. The fused ones are drawn, so there is little to learn from them; the answer is what is asked for.
_FUSED_WEIGHT, _FILLER_WEIGHT, _ANSWER_WEIGHT = 0.1, 0.2, 4.0


def questions() -> np.ndarray:
    """int64 [56, PROMPT_TOKENS]: every prompt there is."""
    return _prompts(np.array(list(permutations(range(len(LETTERS)), ASKED))))


def draw_samples(count: int, seed: Sequence[int], marked: bool = True) -> np.ndarray:
    """int64 [count, PROMPT_TOKENS + NEW_TOKENS]: right samples of prompts of their own; marked: with the marks."""
    prompts, draw = _draw_prompts(count, (*seed, 1)), np.random.default_rng([*seed, 2])
    digits = draw.integers(0, len(DIGITS), (count, len(LETTERS)))
    thought = np.full((count, len(LETTERS), _STRIDE), VOCABULARY.index(FILLER))
    thought[:, :, 0] = _FIRST + np.arange(len(LETTERS)) * len(DIGITS) + digits
    if marked:
        for place, mark in enumerate(MARKS):
            asked = _letters(thought[:, :, 0]) == prompts[:, 1 + place, None] - _LETTER
            thought[:, :, 1] = np.where(asked, VOCABULARY.index(mark), thought[:, :, 1])
    ends = _column(SLOW_END_TOKEN, count), _column(ANSWER, count)
    samples = [prompts, thought.reshape(count, THOUGHT), *ends]
    return np.concatenate([*samples, _answers(prompts, thought[:, :, 0]), _column(EOS_TOKEN, count)], axis=1)


def draw_batch(count: int, seed: Sequence[int], marked: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """`draw_samples`, and loss weights float32 of their shape: 0 on the prompts."""
    ids = draw_samples(count, seed, marked)
    weights = np.zeros(ids.shape, dtype=np.float32)
    weights[:, PROMPT_TOKENS:] = 1
    thought = weights[:, PROMPT_TOKENS : PROMPT_TOKENS + THOUGHT]
    thought[:, 0::_STRIDE] = _FUSED_WEIGHT
    for filler in range(2, _STRIDE):
        thought[:, filler::_STRIDE] = _FILLER_WEIGHT
    weights[:, -1 - ASKED : -1] = _ANSWER_WEIGHT
    return ids, weights


def thought_of(ids: np.ndarray) -> tuple[np.ndarray, int, int]:
    """What `TokenScorer.fit` takes of a sample: its ids and where its thought begins and ends."""
    return ids, PROMPT_TOKENS, PROMPT_TOKENS + THOUGHT


def form() -> dict[str, Any]:
    """A program that holds the thought to its form: letters in order, fillers, its end. The digits, the marks and the
    answer stay the model's: what is measured is what it remembers, not whether it can count."""
    rules: list[dict[str, Any]] = []
    for place in range(len(LETTERS)):
        first = _FIRST + place * len(DIGITS)
        allowed = list(range(first, first + len(DIGITS)))
        rules.append({"bias": allowed, "by": _SURELY, "when": {"at": place * _STRIDE}})
        fillers = [VOCABULARY.index(FILLER)] * (FILLERS - 1)
        rules.append({"force": fillers, "when": {"at": place * _STRIDE + 2}})
    ending = [VOCABULARY.index(word) for word in (SLOW_END_TOKEN, ANSWER)]
    return {"rules": [*rules, {"force": ending, "when": {"at": THOUGHT}}]}


def wanted(prompts: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """bool [n, T]: which tokens [n, T] hold a letter that their prompt asks for."""
    asked = prompts[:, 1 : 1 + ASKED] - _LETTER
    return (_letters(tokens)[:, :, None] == asked[:, None]).any(-1)


def digits_right(ids: np.ndarray) -> np.ndarray:
    """float64 [n]: share of the answer's digits that are those the sample's own thought gave its letters."""
    thought = ids[:, PROMPT_TOKENS : PROMPT_TOKENS + THOUGHT : _STRIDE]
    answered = ids[:, PROMPT_TOKENS + THOUGHT + 2 :][:, :ASKED]
    return (answered == _answers(ids[:, :PROMPT_TOKENS], thought)).mean(axis=1)


def _draw_prompts(count: int, seed: Sequence[int]) -> np.ndarray:
    letters = np.tile(np.arange(len(LETTERS)), (count, 1))
    return _prompts(np.random.default_rng(list(seed)).permuted(letters, axis=1)[:, :ASKED])


def _prompts(asked: np.ndarray) -> np.ndarray:
    ends = _column(QUESTION, len(asked)), _column(SLOW_TOKEN, len(asked))
    return np.concatenate([_column(BOS_TOKEN, len(asked)), _LETTER + asked, *ends], axis=1)


def _answers(prompts: np.ndarray, fused: np.ndarray) -> np.ndarray:
    """[n, ASKED] digits that the fused tokens [n, letters] give the prompt's letters; -1 for a letter without one."""
    found = _letters(fused)[:, None] == (prompts[:, 1 : 1 + ASKED] - _LETTER)[:, :, None]
    digits = np.take_along_axis(fused, found.argmax(-1), axis=1) - _FIRST
    return np.where(found.any(-1), _DIGIT + digits % len(DIGITS), -1)


def _letters(tokens: np.ndarray) -> np.ndarray:
    """The places of fused tokens' letters among `LETTERS`; -1 for every other token."""
    fused = (tokens >= _FIRST) & (tokens < _FIRST + len(_FUSED))
    return np.where(fused, (tokens - _FIRST) // len(DIGITS), -1)


def _column(word: str, rows: int) -> np.ndarray:
    return np.full((rows, 1), VOCABULARY.index(word))
