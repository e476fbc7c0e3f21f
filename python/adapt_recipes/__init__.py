"""Programs that drive adapt_kernels through its public API: a task with known difficulty, training, demo, command line.

`problems`, `grade`, `Problem` and `checkpoint_path` need nothing beyond the standard library.
"""

from pathlib import Path

from adapt_recipes.families import grade, problems
from adapt_recipes.task import Problem

__all__ = ["Problem", "checkpoint_path", "grade", "problems"]


def checkpoint_path(name: str) -> Path:
    """Folder of a checkpoint shipped with the package, for `AutoModelForCausalLM` and `AutoTokenizer`."""
    shipped = Path(__file__).parent / "checkpoints"
    names = sorted(entry.name for entry in shipped.iterdir() if (entry / "config.json").is_file())
    if name not in names:
        raise ValueError(f"no shipped checkpoint is named {name!r}; there is: {', '.join(names)}")
    return shipped / name
