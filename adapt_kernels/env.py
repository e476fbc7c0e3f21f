"""Every environment variable the engine reads. Nothing else in the package reads one."""

import os
from typing import NamedTuple


class Variable(NamedTuple):
    """One environment variable; set to nothing counts as not set."""

    name: str
    kind: str
    default: str
    meaning: str


VARIABLES = (
    Variable(
        "ADAPT_KERNELS_CACHE",
        "folder",
        "`$XDG_CACHE_HOME/adapt_kernels`, else `~/.cache/adapt_kernels`",
        "Where compiled kernels are kept. It must belong to you or root and not be writable by everyone.",
    ),
    Variable("XDG_CACHE_HOME", "absolute folder", "`~/.cache`", "The user's cache folder."),
    Variable("CXX", "command", "the first of `c++`, `g++`, `clang++`", "The C++ compiler of the native backend."),
    Variable(
        "CUDA_HOME",
        "folder",
        "that of the `nvcc` on PATH, else `/usr/local/cuda`",
        "The CUDA toolkit that compiles the kernels for a GPU.",
    ),
    Variable(
        "ADAPT_KERNELS_MODES",
        "folder",
        "the served model's",
        "Where a serving engine finds `modes.json`.",
    ),
    Variable(
        "ADAPT_KERNELS_PROGRAMS",
        "NAME=FOLDER,...",
        "`default`, if `program.json` is beside the served model",
        "Programs that requests to a serving engine may name.",
    ),
)
_NAMES = frozenset(variable.name for variable in VARIABLES)


def get(name: str) -> str | None:
    """The value of one of `VARIABLES`, None if it is not set."""
    if name not in _NAMES:
        raise KeyError(f"{name} is not declared in adapt_kernels.env.VARIABLES")
    return os.environ.get(name) or None


def markdown_table() -> str:
    """`VARIABLES` as the table csrc/README.md shows."""
    lines = ["| variable | type | default | meaning |", "|---|---|---|---|"]
    lines += [f"| `{v.name}` | {v.kind} | {v.default} | {v.meaning} |" for v in VARIABLES]
    return "\n".join(lines) + "\n"
