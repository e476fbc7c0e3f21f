"""The demonstration on a real model: SmolLM2-135M in two modes, and after it has learnt which questions deserve which.

Every problem is answered greedily once per mode, and any bias follows by arithmetic. Beside it: the same model without
an adapter, asked in words to answer directly or to think step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import adapt_kernels as ak
from adapt_recipes.evaluation.compare import BIASES, level_rows
from adapt_recipes.evaluation.frontier import (
    FrontierRow,
    Outcomes,
    expected_seconds,
    frontier,
    measure_modes,
    random_choice,
    spread_problems,
)
from adapt_recipes.evaluation.gain import gains
from adapt_recipes.evaluation.generate import answer, encode
from adapt_recipes.evaluation.plot import Curve, save_frontiers
from adapt_recipes.evaluation.report import save_rows, signed
from adapt_recipes.models import load, load_modes, model_folder
from adapt_recipes.programs import thought_span
from adapt_recipes.tasks import words
from adapt_recipes.tasks.families import grade
from adapt_recipes.tasks.problem import Problem
from adapt_recipes.terminal import progress

MODELS = ("smollm2-sft", "smollm2-rl")
UNTRAINED = "smollm2"
ROWS_PER_CALL = 64
ASKED = {
    "asked to answer directly": "Answer directly, with the number or name alone.",
    "asked to think step by step": "Think step by step, then say the answer.",
}
ASKED_TOKENS = 96
BUDGETS = (0, 8, 24)


def run_frontier_demo(
    out: Path,
    count: int = 150,
    seed: int = 7,
    console: Console | None = None,
    models: tuple[str, str] = MODELS,
    untrained: str | None = UNTRAINED,
) -> list[dict[str, Any]]:
    """Measure `count` unseen problems on both `models`, print the tables, save frontier.png and two CSV files in `out`.

    Returns the rows of frontier.csv: every bias of the second model beside the first, both forced modes, and
    `untrained` as asked in words (None leaves it out). Raises what `load` does.
    """
    if count < 1:
        raise ValueError(f"problems must be at least 1, got {count}")
    console = console or Console()
    tasks = spread_problems(words.IDLE_NAME, count, seed)
    folders = [model_folder(name) for name in models]
    loaded = [_patched(folder) for folder in folders]
    out.mkdir(parents=True, exist_ok=True)
    measured = []
    with progress("answering", 2 * len(models) * len(tasks)) as advance:
        for model, tokenizer, modes in loaded:
            measured.append(measure_modes(model, tokenizer, modes, tasks, None, ROWS_PER_CALL, advance))
    asked = [] if untrained is None else _asked(untrained, tasks)
    rows = _report(models, measured, asked, tasks, out, console)
    _show_settings(console, *loaded[1], tasks)
    console.print(f"saved frontier.csv, difficulty.csv and frontier.png in {out}", soft_wrap=True, highlight=False)
    return rows


def _report(
    models: tuple[str, str],
    measured: Sequence[Outcomes],
    asked: list[dict[str, Any]],
    tasks: Sequence[Problem],
    out: Path,
    console: Console,
) -> list[dict[str, Any]]:
    sft, rl = measured
    rows = _frontier_rows(sft, rl) + _forced_rows(models[0], sft) + _forced_rows(models[1], rl) + asked
    save_rows(rows, out / "frontier.csv")
    families = [task.family for task in tasks]
    by_level = [level_rows(name, got, families) for name, got in zip(models, measured, strict=True)]
    save_rows([row for part in by_level for row in part], out / "difficulty.csv")
    curves = [Curve(row["setting"], [_point(row)]) for row in asked]
    curves += [Curve(name, frontier(got, BIASES)) for name, got in zip(models, measured, strict=True)]
    save_frontiers(
        curves, lambda tokens: random_choice(sft, tokens), out / "frontier.png",
        f"SmolLM2-135M, one bias on one token: {len(tasks)} unseen questions", models[0],
    )  # fmt: skip
    console.print(_frontier_table(rows, models), _level_table(by_level[1], models[1]))
    return rows


def _patched(folder: Path) -> tuple[Any, Any, ak.Modes]:
    model, tokenizer = load(folder)
    modes = load_modes(folder, tokenizer, None, None)
    return ak.patch(model, modes, spans={} if modes.spans else thought_span(tokenizer)), tokenizer, modes


def _frontier_rows(sft: Outcomes, rl: Outcomes) -> list[dict[str, Any]]:
    rows = []
    pairs = zip(frontier(rl, BIASES), frontier(sft, BIASES), gains(rl, sft, BIASES), strict=True)
    for row, beside, gain in pairs:
        rows.append(_row(f"bias {signed(row.bias)}", row.p_fast, row.accuracy, row.mean_tokens,
                         expected_seconds(rl, row.bias)) | {
            "sft_accuracy": beside.accuracy, "sft_mean_tokens": beside.mean_tokens,
            "random_choice": random_choice(sft, row.mean_tokens), "gain": gain.gain, "gain_error": gain.error,
        })  # fmt: skip
    return rows


def _forced_rows(label: str, outcomes: Outcomes) -> list[dict[str, Any]]:
    count = len(outcomes.difficulty)
    return [
        _row(f"{label} forced {mode}", float(m == 0), outcomes.correct[:, m].mean(), outcomes.tokens[:, m].mean(),
             outcomes.seconds[m] / count)
        for m, mode in enumerate(outcomes.modes)
    ]  # fmt: skip


def _asked(name: str, tasks: Sequence[Problem]) -> list[dict[str, Any]]:
    """The model as it came, in its own chat format, told in words how to answer; no mode is asked for."""
    model, tokenizer = load(model_folder(name))
    ak.patch(model, ak.Modes(fast=tokenizer("The")["input_ids"][0], slow=None))
    rows = []
    with progress("asking the untrained model", len(ASKED) * len(tasks)) as advance:
        for setting, instruction in ASKED.items():
            right, tokens, seconds = 0, 0, 0.0
            for start in range(0, len(tasks), ROWS_PER_CALL):
                chunk = tasks[start : start + ROWS_PER_CALL]
                prompts = [f"{task.prompt} {instruction}" for task in chunk]
                got = answer(model, tokenizer, prompts, ASKED_TOKENS, do_sample=False)
                right += sum(words.grade_free(task, text) for task, text in zip(chunk, got.texts, strict=True))
                tokens, seconds = tokens + sum(got.tokens), seconds + got.wall_s
                if advance is not None:
                    advance(len(chunk))
            rows.append(_row(setting, float("nan"), *(total / len(tasks) for total in (right, tokens, seconds))))
    return rows


def _row(setting: str, p_fast: float, accuracy: float, tokens: float, seconds: float) -> dict[str, Any]:
    nothing = dict.fromkeys(("sft_accuracy", "sft_mean_tokens", "random_choice", "gain", "gain_error"), "")
    return {"setting": setting, "p_fast": float(p_fast), "accuracy": float(accuracy), "mean_tokens": float(tokens),
            "seconds": float(seconds), **nothing}  # fmt: skip


def _point(row: dict[str, Any]) -> FrontierRow:
    return FrontierRow(0.0, row["p_fast"], row["accuracy"], row["mean_tokens"])


def _show_settings(console: Console, model: Any, tokenizer: Any, modes: ak.Modes, tasks: Sequence[Problem]) -> None:
    """`calibrate` finds the bias for a share; `thinking_budget` caps what a thought may take."""
    found = ak.calibrate(model, encode(tokenizer, [task.prompt for task in tasks]), target_fast=0.5, do_sample=True)
    console.print(
        f"ak.calibrate(target_fast=0.5): bias {found.bias:+.2f}, interval {found.low:+.2f} to {found.high:+.2f}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    hardest = [task for task in tasks if task.difficulty == words.LEVELS[-1]]
    for budget in BUDGETS:
        got = answer(
            model, tokenizer, [task.prompt for task in hardest], mode=modes.names[-1], do_sample=False,
            thinking_budget=budget,
        )  # fmt: skip
        right = sum(grade(task, text) for task, text in zip(hardest, got.texts, strict=True))
        console.print(
            f"thinking_budget={budget} on the hardest level: {right} of {len(hardest)} right, "
            f"{sum(got.tokens) / len(hardest):.1f} tokens",
            highlight=False, soft_wrap=True,
        )  # fmt: skip


def _frontier_table(rows: Sequence[dict[str, Any]], models: tuple[str, str]) -> Table:
    table = Table(title=f"{models[1]}: accuracy and cost as the bias on the mode token moves")
    table.add_column("setting")
    for heading in ("P(fast)", "accuracy", "tokens", "seconds", f"{models[0]} at random", "gain"):
        table.add_column(heading, justify="right")
    for row in rows:
        at_random = ["", ""]
        if row["gain"] != "":
            at_random = [f"{row['random_choice']:.3f}", f"{row['gain']:+.3f}±{row['gain_error']:.3f}"]
        table.add_row(
            row["setting"], f"{row['p_fast']:.3f}", f"{row['accuracy']:.3f}", f"{row['mean_tokens']:.1f}",
            f"{row['seconds']:.3f}", *at_random,
        )  # fmt: skip
    return table


def _level_table(rows: Sequence[dict[str, Any]], label: str) -> Table:
    table = Table(title=f"{label}: by kind of question and level")
    headings = ("family", "difficulty", "problems", "p_fast", "fast_accuracy", "slow_accuracy", "slow_tokens")
    for heading in headings:
        table.add_column(heading.replace("_", " "), justify="left" if heading == "family" else "right")
    for row in rows:
        table.add_row(*(f"{row[h]:.2f}" if isinstance(row[h], float) else str(row[h]) for h in headings))
    return table
