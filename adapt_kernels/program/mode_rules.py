"""Modes as rules: the choice among them with what comes before and after it, and the caps of those with a closing."""

from collections.abc import Mapping
from typing import NamedTuple

from adapt_kernels.modes import Modes
from adapt_kernels.program.patterns import Resolver
from adapt_kernels.program.program import Program
from adapt_kernels.program.resolved import resolve_span
from adapt_kernels.program.rules import ModeSpan
from adapt_kernels.prompt_spans import openings

Ids = tuple[int, ...]


def gate_rules(modes: Modes) -> Program:
    """The choice among the modes at the first token: the ids that all begin with, the gate, the rest of the chosen."""
    given = {name: _sequence(modes.tokens(name)) for name in modes}
    return Program({"rules": [{"gate": given, "when": {"at": 0}}]}, Resolver())


class ClosingRules(NamedTuple):
    """program: one span for every mode with a closing, in order. chosen: which of these rows begin inside of: their
    rules hold in rows of the mode alone, so the choice is what opens them. reads: tokens of the prompt's end that they
    must have seen."""

    program: Program
    chosen: tuple[bool, ...]
    reads: int


def closing_rules(modes: Modes) -> ClosingRules | None:
    """The rules of the modes that have a closing; None where none has.

    In a row of the mode, or of none, it opens with its tokens, no matter who wrote them, and ends with its close, one
    of its breaks, or its closing; then it may open again, and is counted anew. Raises ValueError that names a mode
    whose ends cannot be told.
    """
    opened, spans, rules, chosen = openings(modes), {}, [], []
    for name in (name for name in modes if modes[name].closing is not None):
        opening, closing = opened[name], modes.tokens(name, "closing") or ()
        close = modes.tokens(name, "close") or closing
        span, by_choice = f"mode {name}", opening is None or modes[name].ids is None
        spans[span] = ModeSpan(_sequence(opening), _sequence(close), _breaks(modes, name, close, closing), stops="end")
        _check_sequences(modes, name, spans[span], by_choice)
        limit = modes[name].max_new_tokens
        assert limit is not None  # of a mode with a closing
        place = {"in": span, "mode": name if by_choice else [name, None]}
        # The tokens that open it count where they were generated: no visit ends before the row has `limit` tokens.
        caps = [{"every": limit - len(opening or ()), "at": limit}]
        if len(close) > 1:  # one that repeats its own beginning could be begun for ever
            caps.append({key: least + len(close) - 1 for key, least in caps[0].items()})
        rules += [_rule(closing, place, **cap, wait=number == 0) for number, cap in enumerate(caps)]
        chosen.append(by_choice)
    if not spans:
        return None
    longest = max(len(ids) for span in spans.values() for ids in _read(span))
    return ClosingRules(Program({"spans": spans, "rules": rules}, Resolver()), tuple(chosen), longest - 1)


def _check_sequences(modes: Modes, name: str, span: ModeSpan, by_choice: bool) -> None:
    try:
        resolve_span(name, span, Resolver())
    except ValueError as error:
        raise ValueError(
            f"mode {name!r}: what opens or ends it is too long to be recognised ({error}); of a long closing, Mode("
            "close=...) is the tag in it"
        ) from None
    ids, breaks = modes.tokens(name), modes.tokens(name, "breaks") or ()
    if by_choice and ids and set(ids) & set(breaks):
        raise ValueError(f"mode {name!r} opens with its own break {sorted(set(ids) & set(breaks))[0]}: leave that out")


def _read(span: ModeSpan) -> list[list[int]]:
    """Every sequence that the span looks for."""
    return [ids for part in (span.open, span.close, span.breaks) if isinstance(part, Mapping) for ids in part["seq"]]


def _rule(closing: Ids, place: dict, every: int, at: int, wait: bool) -> dict:
    # "every", not "count": a close half written counts here.
    since = {"every": every} if every > 0 else {}
    return {"force": list(closing), "when": {**place, **since, "at": [at, None]}, "wait": wait}


def _breaks(modes: Modes, name: str, close: Ids, closing: Ids):
    """What ends it beside its close: its closing too, where that does not hold the close."""
    breaks = [[token] for token in modes.tokens(name, "breaks") or ()]
    holds = any(closing[i : i + len(close)] == close for i in range(len(closing)))
    breaks += [] if holds else [list(closing)]
    return {"seq": breaks} if breaks else None


def _sequence(ids: Ids | None):
    return None if ids is None else {"seq": [list(ids)]}
