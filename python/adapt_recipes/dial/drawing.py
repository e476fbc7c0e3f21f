"""What the page shows beside text: bars, costs and the frontier, as HTML that follows the theme."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from adapt_recipes.dial.points import Point
from adapt_recipes.dial.reply import Reply
from adapt_recipes.evaluation.report import signed

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 360, 72, 24, 36, 64


def message(text: str, kind: str = "error") -> str:
    """A line for the user; "" hides it. kind: error, or note."""
    role = "alert" if kind == "error" else "status"
    return f'<p class="dial-{kind}" role="{role}">{escape(text)}</p>' if text else ""


def bars(names: Sequence[str], before: Sequence[float] | None, after: Sequence[float] | None) -> str:
    """P(mode) before and after the dial, a pair of bars per mode."""
    if before is None or after is None:
        return '<p class="dial-note">P(mode) appears with the first answer.</p>'
    rows = []
    for name, own, shifted in zip(names, before, after, strict=True):
        rows += [_bar(f"P({name})", "own", own), _bar("", "dialled", shifted)]
    return f'<div class="dial-bars">{"".join(rows)}</div>'


def _bar(label: str, kind: str, share: float) -> str:
    return (
        f'<span>{escape(label)}</span><span class="dial-kind">{kind}</span>'
        f'<span class="dial-track"><span class="dial-fill dial-{kind}" style="width:{100 * share:.1f}%"></span></span>'
        f'<span class="dial-share" data-{kind}="{share:.4f}">{share:.3f}</span>'
    )


def tokens(count: int) -> str:
    """A number of tokens in words."""
    return f"{count} token" if count == 1 else f"{count} tokens"


def cost(reply: Reply | None, slow: Reply | None = None, slow_name: str = "slow") -> str:
    """Tokens and seconds of a reply, and against the same prompt forced slow."""
    if reply is None:
        return ""
    lines = [f"mode {reply.mode or '...'}: {tokens(reply.tokens)}, {reply.seconds:.2f} s"]
    if reply.stopped:
        lines.append("stopped")
    if slow is not None and slow.tokens:
        share = f"; {reply.tokens / slow.tokens:.0%} of its tokens" if slow.done and not slow.stopped else ""
        lines.append(f"forced {slow_name}: {tokens(slow.tokens)}, {slow.seconds:.2f} s{share}")
    if reply.note:
        lines.append(reply.note)
    return "".join(f'<p class="dial-cost">{escape(line)}</p>' for line in lines)


def frontier_svg(points: Sequence[Point], chosen: float | None = None) -> str:
    """The points over mean tokens; each is a button that carries its bias. Without accuracy the height is P(first)."""
    if not points:
        return '<p class="dial-note">Not measured yet.</p>'
    graded = points[0].accuracy is not None
    heights = [point.accuracy if graded else point.p_fast for point in points]
    xs, x_ticks = _axis([point.tokens for point in points], LEFT, WIDTH - RIGHT)
    ys, y_ticks = _axis(heights, HEIGHT - BOTTOM, TOP)
    placed = sorted(zip(points, xs, ys, heights, strict=True), key=lambda each: each[1])
    line = " ".join(f"{x:.1f},{y:.1f}" for _, x, y, _ in placed)
    dots = "".join(_dot(point, x, y, height, point.bias == chosen) for point, x, y, height in placed)
    what = "accuracy" if graded else "P(fast)"
    return (
        f'<svg class="dial-frontier" viewBox="0 0 {WIDTH} {HEIGHT}" role="group" aria-label="frontier">'
        f"{_ticks(x_ticks, y_ticks)}"
        f'<polyline points="{line}"/>{dots}<text x="{LEFT}" y="{TOP - 18}" text-anchor="middle">{what}</text>'
        f'<text x="{(WIDTH + LEFT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">mean new tokens</text></svg>'
    )


def _axis(values: Sequence[float], start: float, end: float) -> tuple[list[float], list[tuple[float, float]]]:
    """Positions of the values between two pixels, and three ticks (value, position)."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0

    def at(value: float) -> float:
        return start + (end - start) * (0.04 + 0.92 * (value - low) / span)

    ticks = [low, (low + high) / 2, high] if high > low else [low]
    return [at(value) for value in values], [(value, at(value)) for value in ticks]


def _ticks(x_ticks: Sequence[tuple[float, float]], y_ticks: Sequence[tuple[float, float]]) -> str:
    drawn = [
        f'<line class="dial-grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y + 5:.1f}" text-anchor="end">{value:.2f}</text>'
        for value, y in y_ticks
    ]
    drawn += [
        f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 26}" text-anchor="middle">{value:.1f}</text>' for value, x in x_ticks
    ]
    return "".join(drawn)


def _dot(point: Point, x: float, y: float, height: float, chosen: bool) -> str:
    said = f"bias {signed(point.bias)}: P(fast) {point.p_fast:.2f}, {point.tokens:.1f} tokens"
    said += "" if point.accuracy is None else f", accuracy {point.accuracy:.2f}"
    return (
        f'<g class="dial-dot{" dial-chosen" if chosen else ""}" data-bias="{point.bias:g}" role="button" tabindex="0" '
        f'aria-label="{escape(said)}"><title>{escape(said)}</title><circle class="dial-reach" cx="{x:.1f}" '
        f'cy="{y:.1f}" r="16"/><circle cx="{x:.1f}" cy="{y:.1f}" r="7"/></g>'
    )
