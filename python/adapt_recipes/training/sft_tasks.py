"""What supervised training needs of a task family: a vocabulary, and batches that teach both modes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from adapt_recipes.tasks import chain_sum, families, guess_check, recall
from adapt_recipes.tasks.problem import EOS_TOKEN, Problem
from adapt_recipes.tasks.running_sum import FILLER, MAX_DIFFICULTY
from adapt_recipes.tasks.tokenizer import BOS_TOKEN, MODE_TOKENS, SPECIAL_TOKENS, VOCABULARY
from adapt_recipes.training import sft_batches
from adapt_recipes.training.sft_config import Phase

_QUESTION = ["State", "the", "final", "answer", "to", "the", "following", "arithmetic", "problem:"]
_TOTALS = (str(total) for total in range(-chain_sum.LARGEST, chain_sum.LARGEST + 1))
CHAIN_SUM_VOCABULARY = (*SPECIAL_TOKENS, *dict.fromkeys([*_QUESTION, "+", "-", "=", FILLER, *_TOTALS]), *MODE_TOKENS)
_IDS = {word: i for i, word in enumerate(CHAIN_SUM_VOCABULARY)}
_PROMPT_WORDS = len(_QUESTION) + 2 * chain_sum.MAX_TERMS  # terms, the signs between them, "="
_LONGEST = 1 + _PROMPT_WORDS + 2 * chain_sum.MAX_TERMS + 3  # BOS; slow: mode token, totals, end of trace, answer, EOS
# Fills every prompt to the same length, as the batches do: a trace then stands at one distance from its terms.
CHAIN_SUM_TEMPLATE = (
    "{{ bos_token }} {{ messages[-1].content }}"
    f"{{{{ ' {FILLER}' * ({_PROMPT_WORDS} - messages[-1].content.split() | length) }}}}"
)


@dataclass(frozen=True)
class SftTask:
    """vocabulary: of the tokenizer. draw_batch(phase, seed, step): ids [rows, T] int64, right-padded, and loss weights
    float32 of the same shape, 0 on prompts and padding. max_new_tokens: the longest response, with room to spare.
    chat_template: makes the model's prompt of a problem's, where that takes more than BOS."""

    vocabulary: tuple[str, ...]
    draw_batch: Callable[[Phase, int, int], tuple[np.ndarray, np.ndarray]]
    max_new_tokens: int
    chat_template: str | None = None


def draw_chain_sum_batch(phase: Phase, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """As `sft_batches.draw_batch`, for chain_sum: its k-th difficulty has weight fast_decay^(k-1) in the fast rows."""
    source = np.random.default_rng([seed, step])
    levels = chain_sum.DIFFICULTIES
    likely = phase.fast_decay ** np.arange(len(levels))
    likely = likely / likely.sum()
    mode_weight = (phase.slow_rows / len(levels)) / (phase.fast_rows * likely)
    counts = {False: source.multinomial(phase.fast_rows, likely),
              True: source.multinomial(phase.slow_rows, np.full(len(levels), 1 / len(levels)))}  # fmt: skip
    ids = np.zeros((phase.fast_rows + phase.slow_rows, _LONGEST), dtype=np.int64)  # 0 is the padding
    weights = np.zeros(ids.shape, dtype=np.float32)
    row = 0
    for slow, drawn in counts.items():
        for level, (terms, count) in enumerate(zip(levels, drawn, strict=True)):
            for problem in chain_sum.draw(int(count), terms, f"sft {seed} {step} {slow}"):
                begin, end = _encode(problem, slow, ids[row])
                weights[row, begin:end] = 1
                if not slow:
                    weights[row, begin : begin + 2] = mode_weight[level], phase.fast_answer_weight
                row += 1
    return ids, weights


def _encode(problem: Problem, slow: bool, row: np.ndarray) -> tuple[int, int]:
    """Write prompt and response into `row`; returns where the response begins and ends."""
    question = problem.prompt.split()
    prompt = [BOS_TOKEN, *question, *[FILLER] * (_PROMPT_WORDS - len(question))]
    words = [*prompt, *chain_sum.response(problem, slow).split(), EOS_TOKEN]
    row[: len(words)] = [_IDS[word] for word in words]
    return len(prompt), len(words)


def _one_kind(draw: Callable[..., tuple[np.ndarray, np.ndarray]], **settings: bool):
    """The batches of a task whose sequences are all slow ones."""
    return lambda phase, seed, step: draw(phase.slow_rows, (seed, step), **settings)


SFT_TASKS = {
    "running_sum": SftTask(VOCABULARY, sft_batches.draw_batch, 2 * MAX_DIFFICULTY),
    chain_sum.NAME: SftTask(CHAIN_SUM_VOCABULARY, draw_chain_sum_batch, 3 * chain_sum.MAX_TERMS, CHAIN_SUM_TEMPLATE),
}
# Of `adapt train paths` and `adapt train keep`: their samples are judged by more than an answer, so they are no
# families.
MINIATURES = {
    guess_check.NAME: SftTask(guess_check.VOCABULARY, _one_kind(guess_check.draw_batch), guess_check.TRACE_TOKENS),
    recall.NAME: SftTask(recall.VOCABULARY, _one_kind(recall.draw_batch), recall.NEW_TOKENS),
    f"{recall.NAME}_unmarked": SftTask(
        recall.VOCABULARY, _one_kind(recall.draw_batch, marked=False), recall.NEW_TOKENS
    ),
}


def sft_task(name: str) -> SftTask:
    """The task called `name`; ValueError for a family without traces, RuntimeError when a package is missing."""
    if name in MINIATURES:
        return MINIATURES[name]
    if name not in SFT_TASKS:
        raise ValueError(f"task must be one of {', '.join(SFT_TASKS)} (the families with traces), got {name!r}")
    families.family_of(name).require()
    return SFT_TASKS[name]
