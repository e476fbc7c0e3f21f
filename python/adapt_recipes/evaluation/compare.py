"""`adapt eval`: several models on one task, their frontiers in one table, one plot and two CSV files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

import adapt_kernels as ak
from adapt_recipes.evaluation.frontier import Outcomes, frontier, levels, measure_modes, random_choice, spread_problems
from adapt_recipes.evaluation.gain import gains, taken
from adapt_recipes.evaluation.plot import Curve, save_frontiers
from adapt_recipes.evaluation.report import frontier_table, level_table, save_rows
from adapt_recipes.models import load_model, load_modes, load_tokenizer, model_folder, require_vocabulary
from adapt_recipes.tasks.families import family_of
from adapt_recipes.tasks.free_form import read_problems
from adapt_recipes.tasks.problem import Problem

BIASES = (-8.0, -6.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)


@dataclass(frozen=True)
class EvalConfig:
    """What to measure.

    models: shipped checkpoints by name ("sft", "rl") or local model folders; the random mode choice of the first is the
    line the others are compared with. task: a task family. data: a JSON Lines file of problems, for the family math.
    problems: at least this many, spread evenly over the difficulties. seed: of the problems. biases: added to the
    logit of the first mode. fast, slow: texts that open the modes; None: each folder's modes.json. max_new_tokens:
    None: each model's own.
    """

    models: tuple[str, ...] = ("sft", "rl")
    task: str = "running_sum"
    data: str | None = None
    problems: int = 1600
    seed: int = 7
    biases: tuple[float, ...] = BIASES
    fast: str | None = None
    slow: str | None = None
    max_new_tokens: int | None = None
    rows_per_call: int = 512

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("models must name at least one checkpoint or folder")
        for name in ("problems", "rows_per_call"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.biases:
            raise ValueError("biases must hold at least one number")
        family = family_of(self.task)
        if (self.data is None) != bool(family.difficulties):
            lacks = "takes no data file: it draws its problems" if family.difficulties else "needs a data file (--data)"
            raise ValueError(f"the task family {self.task} {lacks}")


def run_eval(config: EvalConfig, out: Path, console: Console | None = None) -> dict[str, Outcomes]:
    """Measure every model, print the tables, save frontier.csv, difficulty.csv and frontier.png in `out`.

    Each problem is answered greedily once in each mode; the rows are expectations over the draw of the mode.
    """
    console = console or Console()
    family_of(config.task).require()
    folders = _labels([model_folder(name) for name in config.models])
    tasks = _problems(config)
    tokenizers = {label: load_tokenizer(folder) for label, folder in folders.items()}
    for label, folder in folders.items():
        require_vocabulary(tokenizers[label], [task.prompt for task in tasks], folder)
    modes = {
        label: load_modes(folder, tokenizers[label], config.fast, config.slow) for label, folder in folders.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    measured: dict[str, Outcomes] = {}
    answers = len(tasks) * sum(len(each) for each in modes.values())
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(f"{len(tasks)} problems in each mode", total=answers)
        for label, folder in folders.items():
            model = ak.patch(load_model(folder), modes[label])
            measured[label] = measure_modes(
                model, tokenizers[label], modes[label], tasks, config.max_new_tokens, config.rows_per_call,
                advance=lambda count: progress.advance(bar, count),
            )  # fmt: skip
    _show(config, measured, [task.family for task in tasks], out, console)
    return measured


def _problems(config: EvalConfig) -> list[Problem]:
    if config.data is None:
        return spread_problems(config.task, config.problems, config.seed)
    return read_problems(config.data)[: config.problems]


def _labels(folders: list[Path]) -> dict[str, Path]:
    names = [folder.name for folder in folders]
    return {folder.name if names.count(folder.name) == 1 else str(folder): folder for folder in folders}


def _show(
    config: EvalConfig, measured: dict[str, Outcomes], families: Sequence[str], out: Path, console: Console
) -> None:
    base_label, base = next(iter(measured.items()))
    rows, difficulty_rows, curves = [], [], []
    for label, outcomes in measured.items():
        curve = frontier(outcomes, config.biases)
        curves.append(Curve(label, curve))
        for row, gain in zip(curve, gains(outcomes, base, config.biases), strict=True):
            chance = random_choice(base, row.mean_tokens)
            rows.append({"model": label, **vars(row), "random_choice": chance, "gain_error": gain.error})
        difficulty_rows += level_rows(label, outcomes, families)
        console.print(level_table(levels(outcomes), label))
    console.print(frontier_table(rows, base_label))
    save_rows(rows, out / "frontier.csv")
    save_rows(difficulty_rows, out / "difficulty.csv")
    title = f"{config.task}: {len(families)} problems, seed {config.seed}"
    save_frontiers(curves, lambda tokens: random_choice(base, tokens), out / "frontier.png", title, base_label)
    console.print(f"saved frontier.csv, difficulty.csv and frontier.png in {out}", soft_wrap=True, highlight=False)


def level_rows(label: str, outcomes: Outcomes, families: Sequence[str]) -> list[dict[str, Any]]:
    """What each mode can do by difficulty, as flat rows: over all problems, then by family where there are several."""
    names, found = np.array(families), []
    several = sorted(set(families)) if len(set(families)) > 1 else []
    for family in ("all", *several):
        for level in levels(outcomes if family == "all" else taken(outcomes, names == family)):
            row = {"model": label, "family": family, "difficulty": level.difficulty, "problems": level.problems,
                   "p_fast": level.p_fast}  # fmt: skip
            row |= {f"{mode}_accuracy": value for mode, value in level.accuracy.items()}
            found.append(row | {f"{mode}_tokens": value for mode, value in level.tokens.items()})
    return found
