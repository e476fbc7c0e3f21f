"""What a patched model carries, outside its own `__dict__`: copies and pickles of a model leave it behind."""

from dataclasses import dataclass, field
from functools import cached_property
from weakref import WeakKeyDictionary

from adapt_kernels.hf.compat import CheckedLoop
from adapt_kernels.hf.kv.allotment import RecentLengths
from adapt_kernels.hf.outputs import GenerateStats
from adapt_kernels.modes import Modes
from adapt_kernels.program.mode_rules import ClosingRules, closing_rules, gate_rules
from adapt_kernels.program.program import Program
from adapt_kernels.program.rules import Span


@dataclass
class PatchState:
    """modes, spans: what the model was patched with. loop: Hugging Face's, checked. running: `generate` calls under
    way. last_stats: of the latest finished one. recent_lengths: what fast rows needed lately. reading_faults: whether
    the model reads shared prompts rightly, see `LayoutChoice`; keep_faults: why it may not lose cached positions, see
    `DroppedPositions`. no_cache: `training_state` in which the model turned out
    to leave its cache unused. rows_stay: whether rows must stay for a returned cache, since a forward over whole
    sequences gives another one. changing_hooks: handles of hooks on the model that turned out to change what it
    computes."""

    modes: Modes
    loop: CheckedLoop
    spans: dict[str, Span] = field(default_factory=dict)
    running: int = 0
    last_stats: GenerateStats | None = None
    recent_lengths: RecentLengths = field(default_factory=RecentLengths)
    reading_faults: dict[tuple[str, str], str | None] = field(default_factory=dict)
    keep_faults: dict[tuple[str, str], str | None] = field(default_factory=dict)
    no_cache: tuple[bool, bool] | None = None
    rows_stay: bool = False
    changing_hooks: frozenset[int] = frozenset()

    @cached_property
    def gate(self) -> Program:
        """The choice among the modes."""
        return gate_rules(self.modes)

    @cached_property
    def closings(self) -> ClosingRules | None:
        """Of the modes that have a closing; None where none has."""
        return closing_rules(self.modes)

    def keep_rows(self) -> None:
        self.rows_stay = True


STATES: "WeakKeyDictionary[object, PatchState]" = WeakKeyDictionary()
