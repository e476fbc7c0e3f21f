"""Where requests enter an engine: what cannot be honoured is refused, and each row gets the seed of its own stream."""

import secrets
import threading
from collections.abc import Sequence

import torch

from adapt_kernels.philox import row_seed
from adapt_kernels.program.program import Program
from adapt_kernels.program.rules import Force, Gate, label_of
from adapt_kernels.prompt_spans import prompt_spans
from adapt_kernels.serving.control import RowControl
from adapt_kernels.serving.lane import Row
from adapt_kernels.serving.served import Served, reads_outer_mode
from adapt_kernels.serving.settings import Settings


class Entrance:
    """Of one engine. stream: a seed for requests without one; None = one that no other process has."""

    def __init__(self, served: Served, vocab_size: int, stream: int | None = None):
        self.served, self._vocab_size = served, vocab_size
        self._control = RowControl(served, vocab_size, torch.device("cpu"))
        self._lock, self._count = threading.Lock(), 0
        self._stream = secrets.randbits(63) if stream is None else stream

    def admit(self, settings: Settings, prompt: Sequence[int], max_new_tokens: int, seed=None, stops=False) -> int:
        """The seed of the request's row.

        seed: the request's own, beside its settings; stops: whether it has stop strings. Raises ValueError.
        """
        if not settings.steers:
            raise ValueError("fixes the draws of a mode or a program, send one of them too")
        if settings.program is not None:
            self._check_program(settings.program, settings.gated, stops)
        if settings.thinking_budget is not None and self.served.budget:
            self.served.budget.check_vocabulary(self._vocab_size)
        if settings.gated:
            self.served.gate.check_vocabulary(self._vocab_size)
            _check_prompt(self.served, prompt)
        with self._lock:
            self._check_first_token(settings, prompt, max_new_tokens)
            return self._seed(settings.seed if seed is None or settings.seed is not None else seed)

    def _seed(self, given: int | None) -> int:
        if given is not None:
            return given if given < 2**63 else given - 2**64
        self._count += 1
        return row_seed(self._stream, self._count)

    def _check_first_token(self, settings: Settings, prompt, max_new_tokens: int) -> None:
        """A rule that acts where a mode is chosen."""
        if not settings.gated or (settings.thinking_budget is None and settings.program is None):
            return
        row = Row(settings, prompt, (), 0, 1.0, max_new_tokens)
        decision, prefix = self._control.lane(settings).foresee(row), self.served.gate_modes.prefix
        forced, gate, ends = (int(each[0]) for each in (decision.forced, decision.gate, decision.ends))
        if ends or (gate, forced) != ((-1, prefix[0]) if prefix else (0, -1)):
            raise _both_choose("a rule")

    def _check_program(self, program: Program, gated: bool, stops: bool) -> None:
        program.check_vocabulary(self._vocab_size)
        if reads_outer_mode(program) and not gated:
            raise ValueError("its rules ask for a mode that only mode, mode_bias or fast_prob choose: send one of them")
        if stops and any(span.stops == "hold" for span in program.spans.values()):
            raise ValueError(
                "the engine's stop strings do not sleep inside a span: leave out stop, or declare the span with"
                " 'stops': 'end'"
            )
        if not gated:
            return
        for index, rule in enumerate(program.rules):
            at = rule.when.ranges.get("at")
            last = len(self.served.gate_modes.prefix) + 1
            if isinstance(rule, (Gate, Force)) and at is not None and isinstance(at.high, int) and at.high <= last:
                raise _both_choose(label_of(index, rule))


def _check_prompt(served: Served, prompt: Sequence[int]) -> None:
    modes = served.gate_modes
    entered = int(prompt_spans(modes, torch.tensor([list(prompt)]), None, served.eos_ids).entered[0])
    if entered >= 0:
        what = "the modes, in part" if entered == len(modes) else f"mode {modes.names[entered]!r}"
        raise ValueError(
            f"the prompt already ends in the tokens of {what}, so no mode is left to choose: use a chat template that"
            " does not prefill it"
        )


def _both_choose(who: str) -> ValueError:
    return ValueError(
        f"{who} acts at position 0, where mode, mode_bias or fast_prob chooses the mode: leave these out, or let the"
        " rule act later ('at': [n, null])"
    )
