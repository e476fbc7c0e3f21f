"""Which mode a prompt has opened, or closed, before the first new token: its last tag after its last turn decides."""

from typing import NamedTuple

import torch

from adapt_kernels.modes import Modes
from adapt_kernels.prompt_tokens import PromptTokens

CLOSED = 1 << 40  # a beginning after every position


class PromptSpans(NamedTuple):
    """Of each prompt, CPU tensors.

    modes [batch] int8: the mode it has entered, open or closed again, -1 = none. entered [batch] int8: the same, but
    also a mode that it may have entered, and M, the number of modes, for a part of one. contents [S, batch] int64, for
    each mode that has a closing, in order: where what the mode holds begins, counted from the end of the prompt (<= 0),
    CLOSED where the mode is not open.
    """

    modes: torch.Tensor
    entered: torch.Tensor
    contents: torch.Tensor

    def repeat(self, samples: int) -> "PromptSpans":
        """The same for `samples` rows of each prompt."""
        return PromptSpans(*(tensor.repeat_interleave(samples, -1) for tensor in self))


def prompt_spans(modes: Modes, input_ids, attention_mask=None, eos_ids=()) -> PromptSpans:
    """Find the modes' tags at the end of prompts [batch, T]; tokens under a zero of the mask do not count.

    Only the reply that a prompt begins is looked at: what follows its last turn, which an EOS or one of
    `modes.prompt_tokens.turns` ends. In a prompt without a turn, question and reply look alike: there the tag of a mode
    without a closing counts if nothing but tags and white space follows. Without a tokenizer nobody knows white space:
    one id, or a run of it, may be some. Words that open a mode must be the prompt's last ones.

    Host syncs: reads the prompts.
    """
    ids = input_ids.cpu()
    if torch.is_tensor(attention_mask) and attention_mask.shape == ids.shape:
        ids = ids.where(attention_mask.cpu().bool(), -1)
    reader = _Reader(modes, eos_ids)
    found = PromptSpans(
        torch.full((len(ids),), -1, dtype=torch.int8),
        torch.full((len(ids),), -1, dtype=torch.int8),
        torch.full((len(reader.closing), len(ids)), CLOSED),
    )
    rows = torch.isin(ids, torch.tensor(reader.first)).any(1).nonzero()[:, 0]
    for row, begin in zip(rows.tolist(), _reply_begins(ids[rows], reader.turns) if len(rows) else (), strict=True):
        reply = ids[row, begin:]
        reader.read(reply[reply >= 0].tolist(), marked=begin > 0)
        mode, may_be = reader.entered(sure=True), reader.entered(sure=False)
        found.modes[row], found.entered[row] = -1 if mode == len(modes) else mode, may_be
        for index, name in enumerate(reader.closing):
            found.contents[index, row] = reader.content(name, entered=modes.index(name) == mode)
    return found


def openings(modes: Modes) -> dict[str, tuple[int, ...] | None]:
    """The ids that open each mode wherever they come; None: a word, or any other token, opens it only at the gate."""
    told, shown = modes.prompt_tokens, _without_white_space(modes)
    if told is None:
        return {name: modes.tokens(name) for name in modes}
    other = None if told.opener is None else (told.opener,)
    return {name: _tag_or_all(modes.tokens(name), shown[name], told) if name in shown else other for name in modes}


class _Reader:
    """Reads one prompt after the other."""

    def __init__(self, modes: Modes, eos_ids):
        self._modes, self._told = modes, modes.prompt_tokens
        self.closing = [name for name in modes if modes[name].closing is not None]
        told = self._told or PromptTokens()
        self._blank, self._tags = frozenset(told.white_space), frozenset(told.tags)
        self._opener = () if told.opener is None else (told.opener,)
        self._shown, self._openings = _without_white_space(modes), openings(modes)
        self._prefix = tuple(i for i in modes.prefix if i not in self._blank)
        own = {i for name in modes for field in ("ids", "closing") for i in modes.tokens(name, field) or ()}
        self.turns = {*eos_ids, *told.turns} - own - self._blank
        #: a prompt without one of these has entered no mode
        self.first = [*self._tags, *(ids[0] for ids in (*self._shown.values(), self._prefix, self._opener) if ids)]
        self._reply: list[int] = []
        self._marked, self._sure = False, True

    def read(self, reply: list[int], marked: bool) -> None:
        """Take the reply that a prompt begins; marked: after a turn, else the whole prompt."""
        self._reply, self._marked = reply, marked

    def entered(self, sure: bool) -> int:
        """Mode index, -1 = none, M = one in part. sure: not a mode that is only followed by what may be white space."""
        self._sure = sure
        other = self._any_other()
        if other is not None:
            return other
        last, mode = (-1, -1), -1
        for index, (name, ids) in enumerate((n, self._shown.get(n)) for n in self._modes):
            found = self._last(ids)
            if found > last and self._counts(self._reply[found[1] :], ids, name in self.closing):
                last, mode = found, index
        partly = self._begun() > last[0] or (mode < 0 and self._closes_what_it_did_not_open())
        return len(self._modes) if partly else mode

    def content(self, name: str, entered: bool) -> int:
        """Where what a mode with a closing holds begins, from the end of the prompt; CLOSED where it is not open."""
        opening = self._openings[name]
        if opening is None:
            return 0 if entered else CLOSED
        start, end = self._last(self._shown.get(name, opening))
        held = self._reply[end:]
        close, breaks = (self._modes.tokens(name, field) for field in ("close", "breaks"))
        closed = _last_run(held, close or self._modes.tokens(name, "closing"))[0] >= 0
        ended = closed or bool(set(breaks or ()) & set(held))
        return CLOSED if start < 0 or ended else end - len(self._reply)

    def _last(self, ids) -> tuple[int, int]:
        return _last_run(self._reply, ids, self._blank)

    def _counts(self, rest: list[int], ids=(), declared: bool = False) -> bool:
        """Whether a mode's `ids`, followed by `rest`, are of the reply, not words of the question."""
        if self._told is not None and ids and not self._tags.intersection(ids):
            return not rest
        if self._marked or declared:
            return True
        if self._told is None:
            return not rest if self._sure else len(set(rest)) <= 1
        return (self._blank | self._tags).issuperset(rest)

    def _begun(self) -> int:
        """Where a mode begins that lacks its last tokens; -1 = nowhere."""
        starts = [-1]
        if self._prefix:
            start, end = self._last(self._prefix)
            starts.append(start if self._counts(self._reply[end:], self._prefix, bool(self.closing)) else -1)
        for ids in self._shown.values():
            for length in range(len(self._prefix) + 1, len(ids)):
                start, end = self._last(ids[:length])
                starts.append(start if self._blank.issuperset(self._reply[end:]) else -1)
        return max(starts)

    def _closes_what_it_did_not_open(self) -> bool:
        """Some templates write `</think>` for a thought that is not to be."""
        last = max((i for i, token in enumerate(self._reply) if token in self._tags), default=None)
        return last is not None and self._counts(self._reply[last + 1 :])

    def _any_other(self) -> int | None:
        """The mode chosen after the last opener, -1 = none yet; None where no opener is in the reply."""
        start, end = self._last(self._opener)
        held = [i for i in self._reply[end:] if i not in self._blank]
        if start < 0 or not self._counts(held, declared=bool(self.closing)):
            return None
        if not held:
            return -1
        listed = (i for i, n in enumerate(self._modes) if n in self._shown and self._shown[n][0] == held[0])
        return next(listed, self._modes.token_ids.index(None))


def _reply_begins(ids, turns) -> list[int]:
    """Of prompts [rows, T], -1 = padding: where what follows the last turn begins, 0 without one."""
    turn = torch.isin(ids, torch.tensor(sorted(turns), dtype=ids.dtype))
    place = torch.arange(ids.shape[1])
    # A BOS or padding may have the id of an EOS: before the first other token it ends no turn.
    first = torch.where(turn | (ids < 0), ids.shape[1], place).amin(1, keepdim=True)
    return (torch.where(turn & (place > first), place, -1).amax(1) + 1).tolist()


def _without_white_space(modes: Modes) -> dict[str, tuple[int, ...]]:
    """The ids of each mode that has any, white space left out unless that alone tells it from another."""
    blank = () if modes.prompt_tokens is None else modes.prompt_tokens.white_space
    listed = {name: ids for name in modes if (ids := modes.tokens(name)) is not None}
    shown = {name: tuple(i for i in ids if i not in blank) for name, ids in listed.items()}
    values = list(shown.values())
    return {name: ids if ids and values.count(ids) == 1 else listed[name] for name, ids in shown.items()}


def _tag_or_all(ids, shown, told: PromptTokens) -> tuple[int, ...] | None:
    """One tag opens a mode whatever white space is around it."""
    if not set(ids) & set(told.tags):
        return None
    return shown if len(shown) == 1 else ids


def _last_run(tokens: list[int], ids, blank=frozenset()) -> tuple[int, int]:
    """(start, end) of the last place in tokens with `ids` in order, white space between them aside; (-1, -1) = none."""
    if not ids or ids[0] not in tokens:  # most often, and soon told
        return -1, -1
    for start in range(len(tokens) - 1, -1, -1):
        end = start
        for wanted in ids:
            while start < end < len(tokens) and tokens[end] != wanted and tokens[end] in blank:
                end += 1
            if end == len(tokens) or tokens[end] != wanted:
                break
            end += 1
        else:
            return start, end
    return -1, -1
