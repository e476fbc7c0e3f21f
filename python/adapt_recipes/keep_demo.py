"""The demo of a KV budget: accuracy against the positions held at most, by the score that chooses what stays."""

from __future__ import annotations

import math
from pathlib import Path

from rich.console import Console

import adapt_kernels as ak
from adapt_recipes import checkpoint_path
from adapt_recipes.evaluation.keep import FULL, KeepRow, measure
from adapt_recipes.evaluation.plot import save_policies
from adapt_recipes.evaluation.report import keep_table, save_rows
from adapt_recipes.models import load_model
from adapt_recipes.tasks.recall import questions

PEAKS = (18, 24, 32, 40)
ROWS = 224
NOTE = (
    "The answer needs two tokens of a thought of forty. The head has learnt from the answers' attention which those "
    "are, and knows it when the model does: at the mark. A program holds the thought to its form.\n"
)


def run_keep_demo(out: Path, count: int = ROWS, seed: int = 7, console: Console | None = None) -> list[KeepRow]:
    """Decode the shipped task under every budget and score, print the table, save keep.png and keep.csv in `out`."""
    if count < 1:
        raise ValueError(f"problems must be at least 1, got {count}")
    console = console or Console()
    out.mkdir(parents=True, exist_ok=True)
    folder = checkpoint_path("keep")
    model = load_model(folder)
    head = ak.TokenScorer.from_pretrained(folder, model)
    ak.patch(model, ak.Modes.from_pretrained(folder))
    found = measure(model, head, PEAKS, math.ceil(count / len(questions())), seed)
    save_rows([vars(row) for row in found], out / "keep.csv")
    full = [(row.peak, row.accuracy) for row in found if row.policy == "full"]
    curves = {
        name: [(row.peak, row.accuracy) for row in found if row.policy == name] + full
        for name in dict.fromkeys(row.policy for row in found)
        if name != "full"
    }
    save_policies(
        curves, out / "keep.png", f"KV positions held at most, of {FULL}",
        f"What a KV budget costs: {count} rows, seed {seed}",
    )  # fmt: skip
    console.print(keep_table(found, "Remember the marked: accuracy by KV positions held at most"))
    console.print(NOTE)
    console.print(f"saved {out / 'keep.png'} and {out / 'keep.csv'}", soft_wrap=True)
    return found
