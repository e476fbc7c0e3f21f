"""Spans of a call: where each began and ended, and who ended it, told from the tokens afterwards; which hold stops."""

from typing import NamedTuple

import torch

from adapt_kernels.ops.steer import SteerState, advance, state_columns


class Visit(NamedTuple):
    """One visit of a span: generated positions [start, end), tags excluded; closed_by is model, rule, break or end."""

    name: str
    start: int
    end: int
    closed_by: str


def spans_that_hold_stops(compiled, of_rows) -> torch.Tensor:
    """[rows, spans] bool, on the CPU: spans of the row's own programs in which stop strings sleep."""
    holds = [
        [owner in own and compiled.programs[owner].spans[name].stops == "hold" for owner, name in compiled.spans]
        for own in of_rows
    ]
    return torch.tensor(holds, dtype=torch.bool).reshape(len(of_rows), len(compiled.spans))


def visits(compiled, state: SteerState, of_rows, tokens, lengths, forced) -> list[list[Visit]]:
    """Per row the visits of every span of its own, in order of start, end and name.

    state: the rows after their prompt; of_rows: the numbers of each row's programs; tokens [rows, T] int64, of which
    lengths [rows] count; forced [rows, T] bool: tokens that a rule wrote. One pass over T, on the state's device.
    """
    num_spans = len(compiled.spans)
    since, total, entries, _, _ = state_columns(num_spans, len(compiled.rules))
    flags, finished, breaks = [state.flags[:, :num_spans]], [state.numbers[:, total:entries]], []
    pattern = compiled.tables.spans[:, 1].long()
    for position in range(tokens.shape[1]):
        here = torch.where(position < lengths, tokens[:, position], -1)
        state = advance(compiled.tables, state, here)
        flags.append(state.flags[:, :num_spans])
        finished.append(state.numbers[:, total:entries])
        places = pattern * compiled.tables.accept.shape[1] + state.patterns[:, pattern].long()
        breaks.append(~compiled.tables.accept.flatten()[places])
    history = [torch.stack(each, 1).tolist() if each else [[]] * len(tokens) for each in (flags, finished, breaks)]
    return [
        sorted(
            (
                visit
                for span, (owner, name) in enumerate(compiled.spans)
                if owner in own
                for visit in _of_row(name, span, *row)
            ),
            key=lambda visit: (visit.start, visit.end, visit.name),
        )
        for own, *row in zip(of_rows, *history, forced.tolist(), lengths.tolist(), strict=True)
    ]


def _of_row(name: str, span: int, flags, finished, breaks, forced, length: int) -> list[Visit]:
    found, start = [], 0
    for position in range(length):
        before, after = flags[position][span], flags[position + 1][span]
        if before and not after:
            size = finished[position + 1][span] - finished[position][span]
            by = "break" if breaks[position][span] else "rule" if forced[position] else "model"
            found.append(Visit(name, start, start + size, by))
        elif after and not before:
            start = position + 1
    if flags[length][span]:
        found.append(Visit(name, start, length, "end"))
    return found
