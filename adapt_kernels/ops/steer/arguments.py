"""What backends that read memory by address share: one check of all arguments, their layout, the outputs."""

from operator import attrgetter
from typing import NamedTuple

import torch

from adapt_kernels.ops.steer.tables import Decision, SteerRows, SteerState, SteerTables, state_columns

_form = attrgetter("dtype", "shape", "device")
_is_contiguous = torch.Tensor.is_contiguous


class _Layout(NamedTuple):
    """{name: (dtype, shape, device)} of all arguments beside some tables; built once for the many steps of a call."""

    tables: SteerTables
    numbers: tuple  # the form of `state.numbers`
    registers: torch.Size
    state: dict[str, tuple]
    rows: dict[str, tuple]
    tokens: dict[str, tuple]
    uniforms: dict[str, tuple]
    decision: dict[str, tuple]


_last: _Layout | None = None


def check(
    tables: SteerTables,
    state: SteerState,
    rows: SteerRows | None = None,
    tokens=None,
    uniforms=None,
    decided: tuple | None = None,
) -> None:
    """Raises TypeError or ValueError that names the argument, what was given and what is allowed. No host sync.

    decided: forced, ends and gate of the decision that `settle` reads.
    """
    global _last
    layout, numbers, registers = _last, _form(state.numbers), state.registers.shape
    if layout is None or layout.tables is not tables or layout.numbers != numbers or layout.registers != registers:
        layout = _last = _new_layout(tables, numbers, registers)
    _compare(layout.state, state)
    if rows is not None:
        _compare(layout.rows, rows)
    if tokens is not None:
        _compare(layout.tokens, (tokens,))
    if uniforms is not None:
        _compare(layout.uniforms, (uniforms,))
    if decided is not None:
        _compare(layout.decision, decided)


def _compare(wanted: dict[str, tuple], tensors) -> None:
    try:
        if [*map(_form, tensors)] == [*wanted.values()]:
            return
    except AttributeError:
        pass
    for (name, (dtype, shape, device)), tensor in zip(wanted.items(), tensors, strict=True):
        if not torch.is_tensor(tensor) or tensor.dtype != dtype:
            given = tensor.dtype if torch.is_tensor(tensor) else type(tensor).__name__
            raise TypeError(f"{name} must be a tensor of {dtype}; got {given}")
        if tensor.shape != shape:
            raise ValueError(f"{name} must have shape {tuple(shape)} here; got {tuple(tensor.shape)}")
        if tensor.device != device:
            raise ValueError(f"{name} must be on the device of the state, {device}; got {tensor.device}")


def _new_layout(tables: SteerTables, numbers: tuple, registers: torch.Size) -> _Layout:
    _, shape, device = numbers
    num_spans, num_rules = len(tables.spans), len(tables.rules)
    least = state_columns(num_spans, num_rules)[-1] + 1
    if len(shape) != 2 or shape[1] < least:
        raise ValueError(f"state.numbers must have shape [n, W] with W >= {least} here; got {tuple(shape)}")
    count = shape[0]
    for name in ("limits", "lengths", "ids"):
        lines = len(getattr(tables, name))
        if lines not in (1, count):
            raise ValueError(f"tables.{name} must have 1 line or one per row, {count}; got {lines}")

    def form(dtype, *more):
        return dtype, torch.Size((count, *more)), device

    return _Layout(
        tables,
        numbers,
        registers,
        state={
            "state.patterns": form(torch.uint8, len(tables.transitions)),
            "state.flags": form(torch.uint8, num_spans + num_rules),
            "state.numbers": form(torch.int32, shape[1]),
            "state.registers": form(torch.float32, *registers[1:2]),
        },
        rows={
            "rows.seeds": form(torch.int64),
            "rows.max_new_tokens": form(torch.int32),
            "rows.uses": form(torch.bool, num_rules),
            "rows.alive": form(torch.bool),
        },
        tokens={"tokens": form(torch.int64)},
        uniforms={"uniforms": form(torch.float64, num_rules)},
        decision={
            "decision.forced": form(torch.int64),
            "decision.ends": form(torch.uint8),
            "decision.gate": form(torch.int32),
        },
    )


def contiguous(tensors):
    """A NamedTuple of tensors, each contiguous."""
    if all(map(_is_contiguous, tensors)):
        return tensors
    return tensors._make(each.contiguous() for each in tensors)


def contiguous_or_none(tensor) -> torch.Tensor | None:
    """As `contiguous`, of one argument that may be left out."""
    return None if tensor is None else tensor.contiguous()


def empty_decision(rows: SteerRows, classes: int) -> Decision:
    """Memory for a decision about `rows`, which are contiguous."""
    gate = torch.empty_like(rows.max_new_tokens)
    scale = torch.empty(gate.shape[0], classes, dtype=torch.float32, device=gate.device)
    return Decision(
        forced=torch.empty_like(rows.seeds),
        ends=torch.empty_like(gate, dtype=torch.uint8),
        gate=gate,
        scale=scale,
        bias=torch.empty_like(scale),
        sample=torch.empty_like(gate),
        acting=torch.empty_like(rows.uses),
    )
