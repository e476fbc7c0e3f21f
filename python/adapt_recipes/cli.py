"""Entry point of the `adapt` command; the commands themselves are in `commands.py`."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

NEEDED = {"typer": "typer", "rich": "rich", "matplotlib": "matplotlib", "yaml": "PyYAML", "pydantic": "pydantic"}


def main() -> None:
    """Run the command line, or say which packages it lacks."""
    missing = [package for module, package in NEEDED.items() if find_spec(module) is None]
    if missing:
        print(
            f"adapt: the command line needs {', '.join(missing)}: pip install 'adapt-kernels[recipes]'", file=sys.stderr
        )
        raise SystemExit(2)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # for "Loading weights"; ours are enough
    from adapt_recipes.commands import app

    app()


if __name__ == "__main__":
    main()
