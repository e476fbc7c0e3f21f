"""What a patched model carries, outside its own `__dict__`: copies and pickles of a model leave it behind."""

from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from adapt_kernels.hf.allotment import RecentLengths
from adapt_kernels.hf.compat import CheckedLoop
from adapt_kernels.hf.outputs import GenerateStats
from adapt_kernels.modes import Modes


@dataclass
class PatchState:
    """loop: Hugging Face's, checked. running: `generate` calls under way. last_stats: of the latest finished one.
    recent_lengths: what fast rows needed lately."""

    modes: Modes
    loop: CheckedLoop
    running: int = 0
    last_stats: GenerateStats | None = None
    recent_lengths: RecentLengths = field(default_factory=RecentLengths)


STATES: "WeakKeyDictionary[object, PatchState]" = WeakKeyDictionary()
