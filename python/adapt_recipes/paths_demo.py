"""The demo of paths: of 16 samples of a prompt, which live on, and what that costs, by the score that chooses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

import adapt_kernels as ak
from adapt_recipes import checkpoint_path
from adapt_recipes.evaluation.paths import PathRow, compare, guess_and_check, of_problems, policies
from adapt_recipes.evaluation.plot import save_policies
from adapt_recipes.evaluation.report import path_table, save_rows
from adapt_recipes.models import load
from adapt_recipes.tasks.families import problems
from adapt_recipes.tasks.guess_check import AT

KEEPS = (1, 2, 4, 8)
PROMPTS = 100
SFT = {"difficulty": 8, "temperature": 1.5, "at": 8, "window": 4}
NOTE = (
    "Every trace begins with a guess, and one in four is right. No log-prob tells which, so confidence chooses as well "
    "as a die; STOP reads the model's own KV once the guess can be checked.\n"
)
SFT_NOTE = (
    "On running_sum at temperature 1.5 errors are unlikely draws: the log-probs of the tokens tell them (logprob), the "
    "sharpness of the distributions that they were drawn from does not (confidence).\n"
)


def run_paths_demo(out: Path, count: int = PROMPTS, seed: int = 7, console: Console | None = None) -> list[PathRow]:
    """Prune samples of both shipped tasks by every score, print the tables, save paths.png and paths.csv in `out`."""
    if count < 2:
        raise ValueError(f"problems must be at least 2, for an interval; got {count}")
    console = console or Console()
    out.mkdir(parents=True, exist_ok=True)
    rows, plain = guess_check_rows(count, seed), running_sum_rows(count, seed)
    saved = [("guess_check", row) for row in rows] + [("running_sum", row) for row in plain]
    save_rows([{"task": task, **vars(row)} for task, row in saved], out / "paths.csv")
    names = dict.fromkeys(row.policy for row in rows)
    save_policies(
        {name: [(row.tokens, row.accuracy) for row in rows if row.policy == name] for name in names}, out / "paths.png",
        "tokens per prompt, those of scores included",
        f"Of 16 samples {', '.join(map(str, reversed(KEEPS)))} live on: {count} prompts, seed {seed}",
    )  # fmt: skip
    console.print(path_table(rows, "Guess and check: which of 16 samples live on"))
    console.print(NOTE)
    console.print(path_table(plain, f"running_sum, slow, temperature {SFT['temperature']}"))
    console.print(SFT_NOTE)
    console.print(f"saved {out / 'paths.png'} and {out / 'paths.csv'}", soft_wrap=True)
    return rows + plain


def guess_check_rows(prompts: int, seed: int, keeps: tuple[int, ...] = KEEPS) -> list[PathRow]:
    """Of the shipped model and scorer, cut right after the guess can be checked."""
    folder = checkpoint_path("paths")
    model, _ = load(folder)
    scorer = ak.PrefixScorer.from_pretrained(folder, model)
    ak.patch(model, ak.Modes.from_pretrained(folder))
    return compare(model, {seed: guess_and_check(prompts, seed)}, policies(scorer), AT, keeps)


def running_sum_rows(prompts: int, seed: int) -> list[PathRow]:
    """Of the supervised checkpoint, whose samples go wrong by unlikely draws."""
    folder = checkpoint_path("sft")
    model, tokenizer = load(folder)
    ak.patch(model, ak.Modes.from_pretrained(folder))
    arguments: dict[str, Any] = {"mode": "slow", "temperature": SFT["temperature"]}
    call = of_problems(tokenizer, problems(prompts, SFT["difficulty"], seed), **arguments)
    scores = {name: name for name in ("random", "confidence", "logprob")}
    return compare(model, {seed: call}, scores, SFT["at"], (4,), window=SFT["window"], top=5)
