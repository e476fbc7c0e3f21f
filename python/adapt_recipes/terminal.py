"""What every command prints with, and how its errors look."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

console = Console()


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn an error of the input or the environment into one line and exit code 2."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        typer.echo(f"adapt: {error}", err=True)
        raise typer.Exit(2) from error
