"""What `adapt schemes` prints, all of it read from the table."""

from __future__ import annotations

from inspect import cleandoc

from rich.box import SIMPLE_HEAD
from rich.table import Table

import adapt_kernels as ak


def scheme_table() -> Table:
    """One line per scheme."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("scheme", "baseline", "reads of each row", "constants", "source"):
        table.add_column(heading)
    for name, row in ak.schemes.SCHEMES.items():
        reads = [*row.signals, *(f"[{signal}]" for signal in row.optional), *(["steps"] if row.placed else [])]
        reads += ["state of earlier batches"] if row.stateful else []
        table.add_row(name, _baseline(row), ", ".join(reads) or "-", ", ".join(row.constants) or "-", row.source)
    return table


def scheme_page(name: str) -> list[str | Table]:
    """The formula of one scheme, what goes in, and its worked examples. Raises ValueError for an unknown name."""
    schemes = ak.schemes
    if name not in schemes.SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(map(repr, schemes.SCHEMES))}; got {name!r}")
    row, settings = schemes.SCHEMES[name], schemes.SchemeSettings()
    lines = [f"{name}: {row.source}", "", cleandoc(row.reward.__doc__), "", f"baseline   {_baseline(row)}"]
    lines += [f"segment    {part}: baseline {own.baseline}" for part, own in row.segments.items()]
    lines.append(f"loss       mode token {row.mode_kind}, response {row.response_kind}, clip -.2 +{row.clip_high:g}")
    if row.num_modes is not None:
        lines.append(f"modes      {' or '.join(map(str, row.num_modes))}")
    lines += [f"signal     {signal}: {schemes.SIGNALS[signal]}" for signal in row.signals]
    lines += [f"optional   {signal}: {schemes.SIGNALS[signal]}" for signal in row.optional]
    lines += [f"constant   {constant} = {getattr(settings, constant)}" for constant in row.constants]
    shown: list[str | Table] = ["\n".join(lines), ""]
    for golden in schemes.GOLDENS.get(name, ()):
        shown += [_setting(golden), _example(row, golden)]
    return shown


def _baseline(row: ak.schemes.Scheme) -> str:
    return "of its own" if row.arithmetic is not None else row.baseline


def _setting(golden: ak.schemes.Golden) -> str:
    given = {**golden.settings, **golden.state}
    given |= {name: getattr(golden, name) for name in ("progress", "step") if getattr(golden, name)}
    return "example" + (f" with {', '.join(f'{name}={value}' for name, value in given.items())}" if given else "")


def _example(row: ak.schemes.Scheme, golden: ak.schemes.Golden) -> Table:
    """A batch, computed here, so that what is shown is what the table gives."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    headings = ["group", "mode", "correct", "length", *row.signals, "reward", "mode token", "response"]
    for heading in headings:
        table.add_column(heading, justify="right")
    sample = golden.rollouts
    reward = row.rewards(sample, golden.scheme_settings, golden.new_state)
    found = row.advantages(sample, golden.scheme_settings, golden.new_state)
    signals = [golden.signals[signal] for signal in row.signals]
    columns = [sample.groups.tolist(), sample.modes.tolist(), golden.correct, golden.lengths, *signals]
    columns += [[f"{value:.6f}" for value in values.tolist()] for values in (reward, found.mode, found.rest)]
    for cells in zip(*columns, strict=True):
        table.add_row(*(f"{cell:g}" if isinstance(cell, float) else str(cell) for cell in cells))
    return table
