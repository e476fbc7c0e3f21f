"""What a patched model carries, outside its own `__dict__`: copies and pickles of a model leave it behind."""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

from adapt_kernels.hf.outputs import GenerateStats
from adapt_kernels.modes import Modes


@dataclass
class PatchState:
    """running: `generate` calls under way. last_stats: of the latest finished one."""

    modes: Modes
    running: int = 0
    last_stats: GenerateStats | None = None


STATES: "WeakKeyDictionary[object, PatchState]" = WeakKeyDictionary()
