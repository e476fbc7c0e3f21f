"""Forces a mode's closing on the rows that reach its max_new_tokens with the mode still open."""

from typing import NamedTuple

import torch

from adapt_kernels import dispatch
from adapt_kernels.program.slots import Slots
from adapt_kernels.prompt_spans import CLOSED, openings


class _Span(NamedTuple):
    """What a mode with a closing holds; ids are tensors on the rows' device."""

    mode: int
    limit: int
    opening: torch.Tensor | None  # None: only the gate opens it
    chosen_at: int | None  # the step at which the gate has opened it, None: its tokens do
    close: torch.Tensor
    breaks: torch.Tensor


class Closings:
    """State of one call over all rows, in Hugging Face's order.

    In a row of the mode, or of none, it opens with its tokens, no matter who wrote them, and ends with its close, one
    of its breaks, or its closing; then it may open again, and is counted anew. A row that has begun to write the close
    gets the time to finish it.
    """

    def __init__(self, modes, contents, device):
        """contents [S, rows]: of `PromptSpans`."""

        def ids(values):
            return torch.tensor(values, dtype=torch.int64, device=device)

        opening, listed = openings(modes), [(i, n, modes[n]) for i, n in enumerate(modes) if modes[n].closing]
        chosen = len(modes.prefix) + 1
        self._spans = [
            _Span(
                index,
                mode.max_new_tokens,
                None if opening[name] is None else ids(opening[name]),
                chosen + len(modes.suffixes[index]) if mode.ids is None or opening[name] is None else None,
                ids(mode.close or mode.closing),
                ids(mode.breaks or ()),
            )
            for index, name, mode in listed
        ]
        self._first = min((span.limit for span in self._spans), default=0)
        longest = max((len(mode.closing) for *_, mode in listed), default=0)
        padded = [mode.closing + (-1,) * (longest - len(mode.closing)) for *_, mode in listed]
        self._closings = ids(padded).view(len(listed), longest)
        self._lengths = (self._closings >= 0).sum(1)
        self._contents = contents.to(device)
        # The closing that a row is being given, -1 = none, and how far.
        self._given = torch.full(contents.shape[1:], -1, device=device)
        self._next = torch.zeros_like(self._given)

    def tokens(self, step: int, input_ids, modes, placed: Slots, busy):
        """[slots] int64, -1 = draw, or None where no row is forced at this step; once per step.

        input_ids [slots, T] and modes [slots] are of the rows `placed`. busy: [slots] bool, rows whose token is forced
        already, or None.
        """
        if not self._spans:
            return None
        slots = slice(None) if placed.in_order else placed.index
        given, after = self._given[slots], self._next[slots]
        may_start = given < 0 if busy is None else (given < 0) & ~busy
        for index, span in enumerate(self._spans):
            content = self._advanced(span, step, input_ids, modes, self._contents[index, slots])
            starts = may_start & self._is_due(span, step, input_ids, content) & ((modes == span.mode) | (modes < 0))
            given, after = given.masked_fill(starts, index), after.masked_fill(starts, 0)
            may_start = may_start & ~starts
            self._contents[index, slots] = content.masked_fill(starts, CLOSED)
        # On a GPU the host does not know whether a row is forced; a CPU can be asked.
        idle = step < self._first or (not dispatch.host_waits(given.device) and not (given >= 0).any())
        tokens = None if idle else torch.where(given >= 0, self._closings[given.clamp(min=0), after], -1)
        if tokens is not None:
            after = after + (given >= 0)
            done = after >= self._lengths[given.clamp(min=0)]
            self._given[slots], self._next[slots] = given.masked_fill(done, -1), after.masked_fill(done, 0)
        return tokens

    def under_way(self, placed: Slots):
        """[slots] bool: rows that are being given a closing; None where none ever is."""
        if not self._spans:
            return None
        return placed.take(self._given) >= 0

    def _advanced(self, span: _Span, step: int, input_ids, modes, content):
        """Where what the span holds begins, [slots], after the last token."""
        if step == 0:
            return content
        if step == span.chosen_at:
            content = content.masked_fill((modes == span.mode) & (content == CLOSED), 0)
        if span.opening is not None:
            content = content.masked_fill((content == CLOSED) & _ends_with(input_ids, span.opening), step)
        ended = _ends_with(input_ids, span.close) & (step - content >= len(span.close))
        if len(span.breaks):
            ended |= torch.isin(input_ids[:, -1], span.breaks) & (step > content)
        return content.masked_fill(ended, CLOSED)

    def _is_due(self, span: _Span, step: int, input_ids, content):
        """[slots] bool: rows that are open and have written as much as they may, and are not about to close."""
        opened = content if span.opening is None else content - len(span.opening)
        over = step - opened.clamp(min=0) - span.limit
        due = over >= 0
        for length in range(1, len(span.close)):
            half = _ends_with(input_ids, span.close[:length]) & (step - content >= length)
            # A close that repeats its own beginning could be begun for ever.
            due &= ~half | (over >= len(span.close) - 1)
        return due


def _ends_with(tokens, ids) -> torch.Tensor:
    """[rows] bool: rows of tokens [rows, T] whose last ones are `ids`."""
    if tokens.shape[1] < len(ids):
        return torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    return (tokens[:, tokens.shape[1] - len(ids) :] == ids).all(1)
