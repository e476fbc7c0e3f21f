"""What every command prints with, and how its errors look."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console()


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None] | None]:
    """A bar on a terminal, gone at the end: yields what advances it by so many. None where nobody watches."""
    if not console.is_terminal:
        yield None
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as shown:
        bar = shown.add_task(label, total=total)
        yield lambda count: shown.advance(bar, count)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn an error of the input or the environment into one line and exit code 2."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        typer.echo(f"adapt: {error}", err=True)
        raise typer.Exit(2) from error
