"""Programs that drive adapt_kernels through its public API: tasks of known difficulty, training, demo, command line.

`tasks/` draws and grades problems, `models` loads model folders, `evaluation/` measures what a model gains and costs,
`training/` teaches one; each imports only those named before it. The demos and the commands of `adapt` stand on top.

`problems`, `grade`, `Problem` and `checkpoint_path` need nothing beyond the standard library for the default family
of tasks; the others name the package that they lack.
"""

from pathlib import Path

from adapt_recipes.tasks.families import grade, problems
from adapt_recipes.tasks.problem import Problem

__all__ = ["Problem", "checkpoint_path", "grade", "problems"]

CHECKPOINTS = ("sft", "rl", "paths", "keep")


def checkpoint_path(name: str) -> Path:
    """Folder of a checkpoint shipped with the package, for `AutoModelForCausalLM` and `AutoTokenizer`.

    "sft" knows both modes and draws them at even odds, "rl" has learnt which problems deserve the slow one. "paths"
    guesses and checks, with a `PrefixScorer` in its folder; "keep" remembers the marked, with a `TokenScorer`.
    """
    if name not in CHECKPOINTS:
        raise ValueError(f"no shipped checkpoint is named {name!r}; there is: {', '.join(CHECKPOINTS)}")
    return Path(__file__).parent / "checkpoints" / name
