"""Accuracy against cost as a picture: frontiers with the line of a random mode choice, or one curve per policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapt_recipes.evaluation.frontier import FrontierRow
from adapt_recipes.evaluation.report import signed

COLOURS = ("0.45", "tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink")
APART = 0.055  # of the width: labels closer than this would overlap


@dataclass(frozen=True)
class Curve:
    """A labelled frontier."""

    label: str
    rows: Sequence[FrontierRow]


def save_frontiers(
    curves: Sequence[Curve], random_choice: Callable[[float], float], path: Path, title: str, base: str
) -> None:
    """Draw accuracy against mean tokens, one dot per bias; the dots of the last curve carry their bias.

    random_choice(tokens): accuracy of drawing the mode of the model labelled `base` at random for those tokens.
    """
    axes = _axes()
    everything = [row.mean_tokens for curve in curves for row in curve.rows]
    ends = [min(everything), max(everything)]
    axes.plot(ends, [random_choice(end) for end in ends], "--", color="0.65", linewidth=1.2, zorder=1,
              label=f"mode of {base} drawn at random")  # fmt: skip
    for i, curve in enumerate(curves):
        _draw(axes, i, curve.label, [(row.mean_tokens, row.accuracy) for row in curve.rows])
    _label_dots(axes, curves[-1].rows, ends)
    _finish(axes, path, "mean generated tokens per problem (cost)", title, "lower right")


def save_policies(curves: Mapping[str, Sequence[tuple[float, float]]], path: Path, cost: str, title: str) -> None:
    """Draw accuracy against a cost of that name, one curve of (cost, accuracy) per policy."""
    axes = _axes()
    for i, (label, points) in enumerate(curves.items()):
        _draw(axes, i, label, points)
    _finish(axes, path, cost, title, "best")


def _axes():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure.subplots()


def _draw(axes, index: int, label: str, points: Sequence[tuple[float, float]]) -> None:
    axes.plot(
        *zip(*sorted(points), strict=True), "o-", color=COLOURS[index % len(COLOURS)], linewidth=1.2, markersize=6,
        markeredgecolor="black", markeredgewidth=0.6, zorder=2 + index, label=label,
    )  # fmt: skip


def _finish(axes, path: Path, cost: str, title: str, legend: str) -> None:
    axes.set(xlabel=cost, ylabel="accuracy", title=title)
    axes.margins(x=0.08, y=0.12)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc=legend, frameon=False)
    axes.figure.savefig(path)


def _label_dots(axes, rows: Sequence[FrontierRow], ends: Sequence[float]) -> None:
    """Write the bias above each dot, from the largest bias on, where there is room since the last label."""
    span = (ends[1] - ends[0]) or 1.0
    last = None
    for row in sorted(rows, key=lambda row: row.mean_tokens):
        if last is None or row.mean_tokens - last >= APART * span:
            axes.annotate(
                signed(row.bias).replace("-", "−"), (row.mean_tokens, row.accuracy), xytext=(-6, 6),
                textcoords="offset points", ha="right", fontsize=9, color="0.2",
            )  # fmt: skip
            last = row.mean_tokens
