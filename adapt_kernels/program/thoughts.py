"""Which rows are inside a thought, token by token."""

from collections.abc import Sequence

import torch

from adapt_kernels.program.program import Program
from adapt_kernels.program.run import ProgramRun


class ThoughtFlags:
    """Of each token of a call whether it lies inside a span of a program without rules, tags excluded."""

    def __init__(self, program: Program, tails: Sequence[Sequence[int]], vocab_size: int, device):
        """tails: per row what follows its prompt's last end of turn."""
        seeds = torch.zeros(len(tails), dtype=torch.int64, device=device)
        self._run = ProgramRun([program] * len(tails), vocab_size=vocab_size, max_new_tokens=1, seeds=seeds)
        self._run.begin(tails)
        self._spans = len(program.spans)
        self._history: list[torch.Tensor] = []
        self._before = self._inside()

    def _inside(self) -> torch.Tensor:
        return self._run.state.flags[:, : self._spans].bool().any(1)

    def commit(self, tokens: torch.Tensor) -> None:
        """Take the next token [rows] int64 of every row."""
        self._run.advance(tokens)
        after = self._inside()
        # The tag that opens comes from outside, the one that closes leads there.
        self._history.append(self._before & after)
        self._before = after

    def history(self) -> torch.Tensor:
        """bool [rows, tokens so far]."""
        return torch.stack(self._history, 1)
