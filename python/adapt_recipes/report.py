"""Show and save measured rows: terminal tables, CSV, and the accuracy/cost frontier as a picture."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from rich.table import Table

from adapt_recipes.evaluate import DifficultyRow, SweepRow


def sweep_table(rows: Sequence[SweepRow]) -> Table:
    """The frontier, one line per bias."""
    table = Table(title="Accuracy and cost as the bias on the mode token moves")
    for heading in ("bias", "P(fast)", "expected", "accuracy", "mean tokens", "wall time"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            f"{row.value:+g}" if row.value else "0", f"{row.p_fast:.3f}", f"{row.p_fast_expected:.3f}",
            f"{row.accuracy:.3f}", f"{row.mean_tokens:.2f}", f"{row.wall_s:.2f} s",
        )  # fmt: skip
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


def difficulty_report(rows: Sequence[DifficultyRow]) -> Table:
    """Accuracy of each forced mode by difficulty."""
    table = Table(title="What each mode can do, by difficulty")
    table.add_column("difficulty", justify="right")
    for name in rows[0].accuracy:
        table.add_column(f"{name} accuracy", justify="right")
    table.add_column("own P(fast)", justify="right")
    for row in rows:
        accuracies = (f"{accuracy:.3f}" for accuracy in row.accuracy.values())
        table.add_row(str(row.difficulty), *accuracies, f"{row.p_fast:.3f}")
    return table


def save_csv(rows: Sequence[SweepRow], path: Path) -> None:
    """Write the rows with one column per field of `SweepRow`."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(SweepRow)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def save_frontier(rows: Sequence[SweepRow], path: Path, title: str) -> None:
    """Draw accuracy against mean tokens, one dot per bias, and the line a blind mix of the two modes would give."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ordered = sorted(rows, key=lambda row: row.mean_tokens)
    tokens = [row.mean_tokens for row in ordered]
    accuracy = [row.accuracy for row in ordered]
    figure = Figure(figsize=(7.2, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(
        [tokens[0], tokens[-1]], [accuracy[0], accuracy[-1]], "--", color="0.6", linewidth=1.2, zorder=1,
        label="mixing the two ends at random",
    )  # fmt: skip
    axes.plot(tokens, accuracy, color="0.35", linewidth=1.2, zorder=2)
    limit = max(abs(row.value) for row in ordered) or 1.0
    dots = axes.scatter(
        tokens, accuracy, c=[row.value for row in ordered], cmap="coolwarm_r", vmin=-limit, vmax=limit, s=60,
        edgecolors="black", linewidths=0.7, zorder=3, label="model, one dot per bias",
    )  # fmt: skip
    _label_dots(axes, ordered)
    axes.set(xlabel="mean generated tokens per problem (cost)", ylabel="accuracy", title=title)
    axes.margins(x=0.08, y=0.12)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    figure.colorbar(dots, ax=axes, label="mode_bias   (− thinks more,  + answers at once)", pad=0.02)
    figure.savefig(path)


def _label_dots(axes, ordered: Sequence[SweepRow]) -> None:
    """Write the bias beside each dot; the dots that crowd at the two ends share a label, as a range."""
    least, most = ordered[0].mean_tokens, ordered[-1].mean_tokens
    span = (most - least) or 1.0
    at_fast_end = [row for row in ordered if row.mean_tokens - least < 0.08 * span]
    at_slow_end = [row for row in ordered if most - row.mean_tokens < 0.08 * span and row not in at_fast_end]
    between = [[row] for row in ordered if row not in at_fast_end and row not in at_slow_end]
    for crowd in filter(None, [at_fast_end, *between, at_slow_end]):
        ends = sorted(row.value for row in (crowd[0], crowd[-1]))
        text = " to ".join(_signed(value) for value in dict.fromkeys(ends))
        middle = crowd[len(crowd) // 2]
        # The curve rises: beside the slow end the room is above it, beside the fast end below it.
        above = middle.mean_tokens - least > 0.5 * span
        axes.annotate(
            text, (middle.mean_tokens, middle.accuracy), xytext=(-8, 8) if above else (9, -8),
            textcoords="offset points", ha="right" if above else "left", va="bottom" if above else "top",
            fontsize=9, color="0.2",
        )  # fmt: skip


def _signed(value: float) -> str:
    return f"{value:+g}".replace("-", "−") if value else "0"
