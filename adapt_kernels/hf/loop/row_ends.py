"""When a row ends: stopping criteria and its mode's max_new_tokens, and what it shows afterwards."""

import torch
from transformers.generation.stopping_criteria import MaxLengthCriteria, MaxTimeCriteria, StopStringCriteria

from adapt_kernels.ops.steer import ENDS_BEFORE

_LIMITS = (MaxLengthCriteria, MaxTimeCriteria)


class RowEnds:
    """`alive` [rows] bool: rows that still decode; `new_tokens` [rows] int64: how many each has; `lost` [rows] bool:
    rows that had no token left to draw; `finished` [rows] bool, with paths: rows that ended by themselves, not by a
    length or a time.

    All vectors are over all rows, in Hugging Face's order.
    """

    def __init__(self, modes, stopping_criteria, config, rows: int, device, rules_end=False, paths_end=False):
        self._criteria = stopping_criteria
        # Hugging Face pads ended rows only when a criterion has an EOS id; without one they keep their tokens.
        self._pads_all = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
        self.pad_token = config._pad_token_tensor
        self.alive = torch.ones(rows, dtype=torch.bool, device=device)
        self.new_tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        self.lost = torch.zeros(rows, dtype=torch.bool, device=device)
        # After a closing the row goes on.
        limits = [None if modes[name].closing else modes[name].max_new_tokens for name in modes]
        self._limits = None
        if any(limits):
            if self.pad_token is None:
                raise ValueError("Mode.max_new_tokens needs a pad token for rows that end early: pass pad_token_id=...")
            # Index -1 (no mode) reads the last entry: no limit.
            unlimited = torch.iinfo(torch.int64).max
            self._limits = torch.tensor([limit or unlimited for limit in limits] + [unlimited], device=device)
        self._rules_end = rules_end
        if rules_end and self.pad_token is None:
            raise ValueError("a rule with 'stop' needs a pad token for rows that end early: pass pad_token_id=...")
        self._paths_end = paths_end
        self._capped = torch.zeros(rows, dtype=torch.bool, device=device)
        self.finished = torch.zeros_like(self._capped)

    @property
    def gone(self) -> torch.Tensor:
        """[rows] bool: rows that show nothing but pad from now on, so that nobody needs their forwards."""
        return ~self.alive if self._pads_all else self._capped & ~self.alive

    def lengths(self, chosen) -> list[int]:
        """New tokens of the chosen [rows] bool rows that have ended."""
        return self.new_tokens[chosen & ~self.alive].tolist()

    def pad(self, tokens):
        """[rows] tokens, pad where a row is gone."""
        if self._pads_all or self._limits is not None or self._rules_end or self._paths_end:
            return torch.where(self.gone, self.pad_token.to(tokens.device), tokens)
        return tokens

    def stop(self, ended) -> None:
        """ended [rows] uint8 of `ops.steer`: rows that a rule ends without this step's token or with it; None: none."""
        if ended is None:
            return
        self._capped = self._capped | (self.alive & (ended > 0))
        self.finished = self.finished | (self.alive & (ended > 0))
        self.alive = self.alive & (ended != ENDS_BEFORE)

    def leave(self, ended, finished: bool = False) -> None:
        """ended [rows] bool: rows that end with the tokens they have, None = none; finished: by themselves."""
        if ended is not None:
            if finished:
                self.finished = self.finished | (self.alive & ended)
            self._capped = self._capped | (self.alive & ended)
            self.alive = self.alive & ~ended

    def lose(self, lost) -> None:
        """lost [rows] bool: rows that had no token to draw, None where that cannot be; before any of them is stopped
        by what was drawn all the same."""
        if lost is not None:
            self.lost = self.lost | (lost & self.alive)

    def update(self, input_ids, scores, modes, new_tokens: int, sleeps=None) -> None:
        """Take the rows out that end with the last token of `input_ids` [rows, T].

        sleeps [rows] bool: rows whose stop strings sleep, None where none do.
        """
        self.new_tokens += self.alive
        self.alive = self.alive & ~self._met(input_ids, scores, sleeps)
        if self._rules_end:
            self.alive = self.alive & ~self._capped
        if self._limits is not None:
            over = new_tokens >= self._limits[modes.long()]
            self._capped = self._capped | over
            self.alive = self.alive & ~over

    def _met(self, input_ids, scores, sleeps):
        if sleeps is None and not self._paths_end:
            return self._criteria(input_ids, scores)
        done = torch.zeros_like(self.alive)
        for criterion in self._criteria:
            met = criterion(input_ids, scores)
            if sleeps is not None and isinstance(criterion, StopStringCriteria):
                met = met & ~sleeps
            if not isinstance(criterion, _LIMITS):
                self.finished = self.finished | (met & self.alive)
            done = done | met
        return done
