"""Measured rows as terminal tables and CSV files."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from adapt_recipes.evaluation.frontier import LevelRow
from adapt_recipes.evaluation.keep import KeepRow
from adapt_recipes.evaluation.measure import SweepRow
from adapt_recipes.evaluation.paths import SAMPLES, PathRow


def frontier_table(rows: Sequence[dict[str, Any]], base: str) -> Table:
    """One line per model and bias, and what drawing the mode of `base` at random gives for the same tokens."""
    table = Table(title="Accuracy and cost as the bias on the mode token moves")
    table.add_column("model")
    for heading in ("bias", "P(fast)", "accuracy", "mean tokens", f"random choice of {base}", "gain"):
        table.add_column(heading, justify="right")
    for row in rows:
        gain = row["accuracy"] - row["random_choice"]
        table.add_row(
            row["model"], signed(row["bias"]), f"{row['p_fast']:.3f}", f"{row['accuracy']:.3f}",
            f"{row['mean_tokens']:.2f}", f"{row['random_choice']:.3f}", f"{gain:+.3f}",
        )  # fmt: skip
    return table


def demo_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Both frontiers, one line per bias, and a random mode choice of the first model at the second one's tokens."""
    table = Table(title="Accuracy and cost as the bias on the mode token moves", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("\nbias", "sft\naccuracy", "mean\ntokens", "rl\nP(fast)", "rl\naccuracy", "mean\ntokens",
                    "wall\ntime", "sft at\nrandom", "\ngain"):  # fmt: skip
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            signed(row["value"]), f"{row['sft_accuracy']:.3f}", f"{row['sft_mean_tokens']:.2f}",
            f"{row['p_fast']:.3f}", f"{row['accuracy']:.3f}", f"{row['mean_tokens']:.2f}", f"{row['wall_s']:.2f} s",
            f"{row['random_choice']:.3f}", f"{row['accuracy'] - row['random_choice']:+.3f}",
        )  # fmt: skip
    return table


def path_table(rows: Sequence[PathRow], title: str) -> Table:
    """Accuracy of the samples that each score lets live, and what it gains over a random choice."""
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("score")
    for heading in ("cut at", f"kept of {SAMPLES}", "accuracy", "over random, 95 %", "tokens", "of them for scores"):
        table.add_column(heading, justify="right")
    for row in rows:
        gain = f"{row.over_random:+.3f} ({row.over_low:+.3f} to {row.over_high:+.3f})"
        table.add_row(
            row.policy, str(row.at), str(row.keep), f"{row.accuracy:.3f}", gain, f"{row.tokens:.0f}",
            f"{row.score_tokens:.0f}",
        )  # fmt: skip
    return table


def keep_table(rows: Sequence[KeepRow], title: str) -> Table:
    """Accuracy under each KV budget: one line per score that chooses what stays, one column per budget."""
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    peaks = sorted({row.peak for row in rows})
    table.add_column("at most held")
    for peak in peaks:
        table.add_column(str(peak), justify="right")
    for policy in dict.fromkeys(row.policy for row in rows):
        found = {row.peak: f"{row.accuracy:.3f}" for row in rows if row.policy == policy}
        table.add_row(policy, *(found.get(peak, "") for peak in peaks))
    return table


def probability_table(rows: Sequence[SweepRow], count: int) -> Table:
    """Drawn share of the fast mode against the asked probability, with its band of three standard errors."""
    table = Table(title="An exact share instead of a bias: fast_prob")
    for heading in ("fast_prob", "P(fast)", "3-standard-error band", "accuracy", "mean tokens"):
        table.add_column(heading, justify="right")
    for row in rows:
        band = three_standard_errors(row.value, count)
        inside = "" if abs(row.p_fast - row.value) <= band else "  outside"
        table.add_row(
            f"{row.value:g}", f"{row.p_fast:.3f}{inside}", f"{row.value - band:.3f} to {row.value + band:.3f}",
            f"{row.accuracy:.3f}", f"{row.mean_tokens:.2f}",
        )  # fmt: skip
    return table


def three_standard_errors(p: float, count: int) -> float:
    """Three standard errors of a share that is `p` in truth, over `count` independent rows."""
    return 3 * math.sqrt(p * (1 - p) / count)


def level_table(rows: Sequence[LevelRow], label: str) -> Table:
    """Accuracy of each forced mode, and how often the model itself chooses the first, by difficulty."""
    table = Table(title=f"{label}: what each mode can do, by difficulty")
    table.add_column("difficulty", justify="right")
    for name in rows[0].accuracy:
        table.add_column(f"{name} accuracy", justify="right")
    table.add_column("own P(fast)", justify="right")
    for row in rows:
        accuracies = (f"{accuracy:.3f}" for accuracy in row.accuracy.values())
        table.add_row(str(row.difficulty), *accuracies, f"{row.p_fast:.3f}")
    return table


def save_rows(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the rows with one column per key of the first."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def signed(value: float) -> str:
    """A bias as text: its sign always, no sign for 0."""
    return f"{value:+g}" if value else "0"
