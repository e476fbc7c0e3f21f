"""The same dial on a real language model that was never trained for it.

SmolLM2-135M-Instruct opens an answer with "The" when it answers directly and with "Let" when it works step by step
("Let's break it down"). Taken as two modes, these words trade tokens exactly like trained mode tokens do. The model is
too small to be good at arithmetic in either mode, so tokens are reported and accuracy is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import adapt_kernels as ak
from adapt_recipes.evaluation.generate import answer
from adapt_recipes.models import load
from adapt_recipes.smollm2 import fetch

FAST_WORD = "The"
SLOW_WORD = "Let"
TOKEN_CAP = 120
BIASES = (-4.0, -2.0, 0.0, 2.0)

PROMPTS = (
    "What is 7 + 5?",
    "What is 12 + 9?",
    "What is 15 - 6?",
    "What is 8 times 4?",
    "What is 36 divided by 6?",
    "What is 25 + 17?",
    "What is 50 - 23?",
    "What is 9 times 7?",
    "What is 14 + 28?",
    "What is 100 - 45?",
    "Tom has 3 apples and buys 4 more. How many apples does he have?",
    "A box holds 6 pens. How many pens are in 5 boxes?",
    "Anna had 20 dollars and spent 8. How much is left?",
    "There are 4 rows of 7 chairs. How many chairs are there?",
    "A train travels 60 miles in one hour. How far does it travel in 3 hours?",
    "Ben reads 12 pages a day. How many pages does he read in 5 days?",
    "There are 30 students in 5 equal groups. How many are in each group?",
    "A pizza has 8 slices and 3 are eaten. How many slices remain?",
    "A book costs 9 dollars. How much do 6 books cost?",
    "Sara has 15 marbles and gives 7 away. How many marbles does she have?",
)


@dataclass(frozen=True)
class WordRow:
    """One setting over the prompts: share of rows that began with the fast word, mean tokens, seconds, the texts."""

    setting: str
    p_fast: float
    mean_tokens: float
    wall_s: float
    texts: list[str]


def measure_words(model: Any, tokenizer: Any, prompts: Sequence[str], cap: int, label: str, **gate: Any) -> WordRow:
    """Answer `prompts` on a patched model with the generate arguments `gate`, at most `cap` tokens each."""
    got = answer(model, tokenizer, prompts, max_new_tokens=cap, **gate)
    fast = sum(mode == 0 for mode in got.modes.tolist())
    return WordRow(label, fast / len(prompts), sum(got.tokens) / len(prompts), got.wall_s, got.texts)


def run_smollm2_demo(seed: int = 0, console: Console | None = None) -> list[WordRow]:
    """Fetch the model if needed, compare both forced modes, then sweep the bias; prints a table and returns its rows.

    In the sweep the mode is drawn at the biased probability from `seed`, the same for every bias, and top_k=1 keeps
    the rest of the answer greedy, so a row changes between two biases only by changing its mode.
    """
    console = console or Console()
    with console.status("SmolLM2-135M-Instruct: download (93 MB) and conversion, only the first time"):
        folder = fetch()
        model, tokenizer = load(folder)
    ak.patch(model, ak.Modes.from_tokenizer(tokenizer, fast=FAST_WORD, slow=SLOW_WORD))
    settings = [(f"mode={name!r}", {"mode": name, "do_sample": False}) for name in ("slow", "fast")]
    settings += [(f"mode_bias={b:+g}", {"mode_bias": b, "seed": seed, "do_sample": True, "top_k": 1}) for b in BIASES]
    rows = []
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(f"{len(PROMPTS)} prompts at each setting", total=len(settings))
        for label, gate in settings:
            rows.append(measure_words(model, tokenizer, PROMPTS, TOKEN_CAP, label, **gate))
            progress.advance(bar)
    console.print(_word_table(rows))
    for row in rows[:2]:
        console.print(f"{row.setting}: {PROMPTS[0]} -> {row.texts[0]}", markup=False, highlight=False)
    return rows


def _word_table(rows: Sequence[WordRow]) -> Table:
    caption = f'fast = "{FAST_WORD}", slow = "{SLOW_WORD}", at most {TOKEN_CAP} tokens'
    table = Table(title="SmolLM2-135M-Instruct, first word as mode", caption=caption)
    table.add_column("setting")
    for heading in ("P(fast)", "mean tokens", "wall time"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(row.setting, f"{row.p_fast:.2f}", f"{row.mean_tokens:.1f}", f"{row.wall_s:.1f} s")
    return table
