"""Programs that drive adapt_kernels through its public API: tasks of known difficulty, training, demo, command line.

`tasks/` draws and grades problems, `models` loads model folders, `evaluation/` measures what a model gains and costs,
`training/` teaches one; each imports only those named before it. The demos and the commands of `adapt` stand on top.

`problems`, `grade`, `Problem`, `checkpoint_path` and `adapter_path` need nothing beyond the standard library for the
default family of tasks; the others name the package that they lack.

.. include:: examples.md
"""

from pathlib import Path

from adapt_recipes.tasks.families import grade, problems
from adapt_recipes.tasks.problem import Problem

__all__ = ["Problem", "adapter_path", "checkpoint_path", "grade", "problems"]

CHECKPOINTS = ("sft", "rl", "paths", "keep")  # the first two trained one after the other
ADAPTERS = ("smollm2-sft", "smollm2-rl")  # likewise


def checkpoint_path(name: str) -> Path:
    """Folder of a checkpoint shipped with the package, for `AutoModelForCausalLM` and `AutoTokenizer`.

    "sft" knows both modes and draws them at even odds, "rl" has learnt which problems deserve the slow one. "paths"
    guesses and checks, with a `PrefixScorer` in its folder; "keep" remembers the marked, with a `TokenScorer`.
    """
    if name not in CHECKPOINTS:
        raise ValueError(f"no shipped checkpoint is named {name!r}; there is: {', '.join(CHECKPOINTS)}")
    return Path(__file__).parent / "checkpoints" / name


def adapter_path(name: str) -> Path:
    """Folder of a LoRA adapter for SmolLM2-135M-Instruct shipped with the package; its README.md is a model card.

    "smollm2-sft" knows both modes and draws them at even odds, "smollm2-rl" has learnt which problems deserve the slow
    one. `adapt_recipes.models.load` puts it on the model that `adapt fetch-smollm2` downloads.
    """
    if name not in ADAPTERS:
        raise ValueError(f"no shipped adapter is named {name!r}; there is: {', '.join(ADAPTERS)}")
    return Path(__file__).parent / "adapters" / name
