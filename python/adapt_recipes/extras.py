"""Packages that only some recipes need: said in one line when they are missing."""

from __future__ import annotations

from importlib.util import find_spec


def require(package: str, extra: str, purpose: str) -> None:
    """Raise RuntimeError, saying how to get it, unless `package` is installed; nothing is imported."""
    if find_spec(package.replace("-", "_")) is None:
        raise RuntimeError(f"{purpose} needs {package}: pip install 'adapt-kernels[{extra}]'")
