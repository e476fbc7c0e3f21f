"""The main demonstration: one trained model, moved along its accuracy/cost frontier by a bias on one token."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from transformers import AutoModelForCausalLM, AutoTokenizer

import adapt_kernels as ak
from adapt_recipes import checkpoint_path, problems
from adapt_recipes.evaluate import SweepRow, measure
from adapt_recipes.report import probability_table, save_csv, save_frontier, sweep_table
from adapt_recipes.task import FAST_TOKEN, SLOW_TOKEN

BIASES = (-8.0, -6.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
FAST_PROBS = (0.1, 0.5, 0.9)
UNUSED_SEED = 7  # any will do: training draws from another stream
NOTE = (
    "The curve is the straight line between its ends: this model was taught both modes at even odds for every "
    "difficulty, so the bias moves it, but it does not choose the mode by the problem.\n"
)


def run_demo(out: Path, count: int = 1000, seed: int = UNUSED_SEED, console: Console | None = None) -> list[SweepRow]:
    """Sweep the bias over `count` problems, print both tables, save frontier.png and frontier.csv in `out`.

    Returns the measured `SweepRow`s: all biases, then the fast_prob settings.
    """
    if count < 1:
        raise ValueError(f"problems must be at least 1, got {count}")
    console = console or Console()
    out.mkdir(parents=True, exist_ok=True)

    folder = checkpoint_path("sft")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    modes = ak.Modes.from_tokenizer(tokenizer, fast=FAST_TOKEN, slow=SLOW_TOKEN)
    ak.patch(model, modes)

    tasks = problems(count, seed=seed)
    settings = [("mode_bias", bias) for bias in BIASES] + [("fast_prob", p) for p in FAST_PROBS]
    rows = []
    with Progress(console=console) as progress:
        bar = progress.add_task(f"{count} problems at each setting", total=len(settings))
        for setting, value in settings:
            rows.append(measure(model, tokenizer, tasks, setting, value, seed))
            progress.advance(bar)

    sweep = [row for row in rows if row.setting == "mode_bias"]
    save_csv(rows, out / "frontier.csv")
    save_frontier(sweep, out / "frontier.png", f"One model, one bias: {count} problems, seed {seed}")
    console.print(sweep_table(sweep))
    console.print(NOTE)
    console.print(probability_table([row for row in rows if row.setting == "fast_prob"], count))
    console.print(f"saved {out / 'frontier.png'} and {out / 'frontier.csv'}", soft_wrap=True)
    return rows
