"""Training sequences for the two modes of the running-sum task, as id and loss-weight arrays."""

from __future__ import annotations

import numpy as np

from adapt_recipes.tasks.problem import EOS_TOKEN, FAST_TOKEN, PAD_TOKEN, SLOW_END_TOKEN, SLOW_TOKEN
from adapt_recipes.tasks.running_sum import FILLER, MAX_DIFFICULTY, QUESTION
from adapt_recipes.tasks.tokenizer import BOS_TOKEN, DIGITS, OPERANDS, token_id
from adapt_recipes.training.sft_config import Phase

PROMPT_TOKENS = MAX_DIFFICULTY + 3  # BOS, start digit, operands and filler, question mark
LONGEST = PROMPT_TOKENS + MAX_DIFFICULTY + 4  # slow: mode token, partial sums, end of trace, answer, EOS

_DIGIT0, _OPERAND0 = token_id(DIGITS[0]), token_id(OPERANDS[0])
_PAD, _BOS, _EOS = token_id(PAD_TOKEN), token_id(BOS_TOKEN), token_id(EOS_TOKEN)
_FILLER, _QUESTION = token_id(FILLER), token_id(QUESTION)
_FAST, _SLOW, _SLOW_END = token_id(FAST_TOKEN), token_id(SLOW_TOKEN), token_id(SLOW_END_TOKEN)


def draw_batch(phase: Phase, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids [rows, LONGEST] int64 and loss weights of the same shape; a function of its arguments only.

    Drawing from (seed, step) rather than from a running generator is what lets a resumed run continue bit for bit.
    """
    source = np.random.default_rng([seed, step])
    likely = phase.fast_decay ** np.arange(MAX_DIFFICULTY)
    likely = likely / likely.sum()
    fast = source.choice(MAX_DIFFICULTY, size=phase.fast_rows, p=likely) + 1
    slow = source.integers(1, MAX_DIFFICULTY + 1, size=phase.slow_rows)
    ids, sums = _prompts(source, np.concatenate([fast, slow]))
    weights = np.zeros(ids.shape, dtype=np.float32)
    mode_weight = (phase.slow_rows / MAX_DIFFICULTY) / (phase.fast_rows * likely)
    for row, k in enumerate(fast):
        _append(ids[row], [_FAST, _DIGIT0 + sums[row, k], _EOS])
        weights[row, PROMPT_TOKENS : PROMPT_TOKENS + 3] = [mode_weight[k - 1], phase.fast_answer_weight, 1]
    for row, k in enumerate(slow, start=len(fast)):
        trace = _DIGIT0 + sums[row, 1 : k + 1]
        _append(ids[row], [_SLOW, *trace, _SLOW_END, trace[-1], _EOS])
        weights[row, PROMPT_TOKENS : PROMPT_TOKENS + k + 4] = 1
    return ids, weights


def _prompts(source: np.random.Generator, difficulty: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids holding only the prompts, and the partial sums mod 10 [rows, 9] (column 0 is the start digit)."""
    digits = source.integers(0, 10, size=(len(difficulty), MAX_DIFFICULTY + 1))
    ids = np.full((len(difficulty), LONGEST), _PAD, dtype=np.int64)
    ids[:, 0], ids[:, 1] = _BOS, _DIGIT0 + digits[:, 0]
    used = np.arange(MAX_DIFFICULTY) < difficulty[:, None]
    ids[:, 2 : 2 + MAX_DIFFICULTY] = np.where(used, _OPERAND0 + digits[:, 1:], _FILLER)
    ids[:, PROMPT_TOKENS - 1] = _QUESTION
    return ids, digits.cumsum(axis=1) % 10


def _append(row: np.ndarray, response: list[int]) -> None:
    row[PROMPT_TOKENS : PROMPT_TOKENS + len(response)] = response
