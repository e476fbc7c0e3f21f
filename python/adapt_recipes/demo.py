"""The main demonstration: two trained models, each moved along its accuracy/cost frontier by a bias on one token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

import adapt_kernels as ak
from adapt_recipes import checkpoint_path, problems
from adapt_recipes.evaluation.compare import BIASES
from adapt_recipes.evaluation.frontier import FrontierRow, Outcomes, measure_modes, random_choice
from adapt_recipes.evaluation.measure import SweepRow, measure
from adapt_recipes.evaluation.plot import Curve, save_frontiers
from adapt_recipes.evaluation.report import demo_table, probability_table, save_rows
from adapt_recipes.models import load

FAST_PROBS = (0.1, 0.5, 0.9)
UNUSED_SEED = 7  # any will do: training draws from another stream
NOTE = (
    "Supervised training (sft) taught both modes at even odds for every difficulty: the bias only mixes them, on the "
    "straight line of a random mode choice. Reinforcement learning (rl) taught the model to choose by the problem.\n"
)


def run_demo(
    out: Path, count: int = 1000, seed: int = UNUSED_SEED, console: Console | None = None
) -> list[dict[str, Any]]:
    """Sweep the bias over `count` problems with both shipped models, print both tables, save frontier.png and
    frontier.csv in `out`.

    Returns the rows of the CSV file: one per bias, measured on the RL model, with the SFT model's accuracy and tokens
    beside it and what a random mode choice of the SFT model gives for the RL model's tokens; then one per fast_prob,
    which is such a random choice, measured on the SFT model.
    """
    if count < 1:
        raise ValueError(f"problems must be at least 1, got {count}")
    console = console or Console()
    out.mkdir(parents=True, exist_ok=True)
    tasks = problems(count, seed=seed)
    models = {name: _patched(name) for name in ("sft", "rl")}
    settings = [(name, "mode_bias", bias) for name in models for bias in BIASES]
    settings += [("sft", "fast_prob", p) for p in FAST_PROBS]
    base = measure_modes(*models["sft"], tasks)
    swept: dict[tuple[str, str], list[SweepRow]] = {}
    with Progress(console=console, disable=not console.is_terminal) as progress:
        for name, setting, value in progress.track(settings, description=f"{count} problems at each setting"):
            model, tokenizer, _ = models[name]
            row = measure(model, tokenizer, tasks, setting, value, seed)
            swept.setdefault((name, setting), []).append(row)
    sft, rl, by_probability = swept.values()
    rows = [_row(ours, theirs, base) for ours, theirs in zip(rl, sft, strict=True)]
    saved = rows + [_row(row, row, base) for row in by_probability]
    save_rows(saved, out / "frontier.csv")
    save_frontiers(
        [_curve("sft", sft), _curve("rl", rl)], lambda tokens: random_choice(base, tokens), out / "frontier.png",
        f"One bias on one token: {count} problems, seed {seed}", "sft",
    )  # fmt: skip
    console.print(demo_table(rows))
    console.print(NOTE)
    console.print(probability_table(by_probability, count))
    console.print(f"saved {out / 'frontier.png'} and {out / 'frontier.csv'}", soft_wrap=True)
    return saved


def _patched(name: str) -> tuple[Any, Any, ak.Modes]:
    folder = checkpoint_path(name)
    model, tokenizer = load(folder)
    modes = ak.Modes.from_pretrained(folder)
    return ak.patch(model, modes), tokenizer, modes


def _curve(label: str, rows: list[SweepRow]) -> Curve:
    return Curve(label, [FrontierRow(row.value, row.p_fast, row.accuracy, row.mean_tokens) for row in rows])


def _row(row: SweepRow, sft: SweepRow, base: Outcomes) -> dict[str, Any]:
    beside = {"sft_accuracy": sft.accuracy, "sft_mean_tokens": sft.mean_tokens}
    return vars(row) | beside | {"random_choice": random_choice(base, row.mean_tokens)}
