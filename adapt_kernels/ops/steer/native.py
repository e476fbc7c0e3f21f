"""steer on the CPU in C++ (`csrc/cpu/steer.cpp`): outputs are allocated here, everything else goes by address."""

from typing import Any, NamedTuple

import torch

from adapt_kernels.native import jit
from adapt_kernels.ops.steer.arguments import contiguous, contiguous_or_none, empty_decision
from adapt_kernels.ops.steer.tables import Decision, RuleField, SteerRows, SteerState, SteerTables

DEVICES = ("cpu",)

_TABLES = tuple(name for name in SteerTables._fields if name != "bias_classes")  # ids are given a class by the sampler
_data_ptr = torch.Tensor.data_ptr


class _Prepared(NamedTuple):
    """Tables with their addresses: what costs more than a step is done once for the many steps of a call."""

    tables: SteerTables
    width: int
    registers: int
    held: list[torch.Tensor]  # what the addresses point at
    native: Any
    kernels: Any
    classes: int


_last: _Prepared | None = None


def advance(tables: SteerTables, state: SteerState, tokens, generated: bool = True) -> SteerState:
    """See `adapt_kernels.ops.steer.advance`. Raises NativeBuildError if the extension cannot be built or loaded."""
    prepared = _prepare(tables, state)
    state, tokens = contiguous(state), tokens.contiguous()
    patterns, flags, numbers = (torch.empty_like(each) for each in state[:3])
    status = prepared.kernels.steer_advance_cpu(
        prepared.native,
        tokens.shape[0],
        *_addresses(state),
        tokens.data_ptr(),
        generated,
        patterns.data_ptr(),
        flags.data_ptr(),
        numbers.data_ptr(),
    )
    _check(status, tables, tokens)
    return SteerState(patterns, flags, numbers, state.registers)


def probe(tables: SteerTables, state: SteerState, rows: SteerRows, uniforms=None, tokens=None):
    """See `adapt_kernels.ops.steer.probe`."""
    prepared = _prepare(tables, state)
    state, rows, uniforms, tokens = (
        contiguous(state),
        contiguous(rows),
        contiguous_or_none(uniforms),
        contiguous_or_none(tokens),
    )
    numbers = torch.empty_like(state.numbers)
    wanted = torch.empty_like(rows.uses)
    status = prepared.kernels.steer_probe_cpu(
        prepared.native,
        numbers.shape[0],
        *_addresses(state),
        *_addresses(rows),
        _address(uniforms),
        _address(tokens),
        numbers.data_ptr(),
        wanted.data_ptr(),
    )
    _check(status, tables, tokens)
    return SteerState(state.patterns, state.flags, numbers, state.registers), wanted


def decide(tables: SteerTables, state: SteerState, rows: SteerRows, uniforms=None) -> tuple[SteerState, Decision]:
    """See `adapt_kernels.ops.steer.decide`."""
    prepared = _prepare(tables, state)
    state, rows, uniforms = contiguous(state), contiguous(rows), contiguous_or_none(uniforms)
    flags, numbers = torch.empty_like(state.flags), torch.empty_like(state.numbers)
    decision = empty_decision(rows, prepared.classes)
    prepared.kernels.steer_decide_cpu(
        prepared.native,
        numbers.shape[0],
        *_addresses(state),
        *_addresses(rows),
        _address(uniforms),
        flags.data_ptr(),
        numbers.data_ptr(),
        *_addresses(decision),
    )
    return SteerState(state.patterns, flags, numbers, state.registers), decision


def step(tables: SteerTables, state: SteerState, rows: SteerRows, tokens, uniforms=None) -> tuple[SteerState, Decision]:
    """See `adapt_kernels.ops.steer.step`."""
    return decide(tables, advance(tables, state, tokens), rows, uniforms)


def settle(tables: SteerTables, state: SteerState, rows: SteerRows, decision: Decision, tokens, uniforms=None):
    """See `adapt_kernels.ops.steer.settle`."""
    prepared = _prepare(tables, state)
    state, rows, uniforms, tokens = (
        contiguous(state),
        contiguous(rows),
        contiguous_or_none(uniforms),
        tokens.contiguous(),
    )
    decision = contiguous(decision)
    numbers, written = torch.empty_like(state.numbers), torch.empty_like(tokens)
    ends, replaced = torch.empty_like(decision.ends), torch.empty_like(rows.alive)
    status = prepared.kernels.steer_settle_cpu(
        prepared.native,
        numbers.shape[0],
        *_addresses(state),
        *_addresses(rows),
        _address(uniforms),
        *_addresses((decision.forced, decision.ends, decision.gate)),
        tokens.data_ptr(),
        numbers.data_ptr(),
        written.data_ptr(),
        ends.data_ptr(),
        replaced.data_ptr(),
    )
    _check(status, tables, tokens)
    return SteerState(state.patterns, state.flags, numbers, state.registers), written, ends, replaced


def _prepare(tables: SteerTables, state: SteerState) -> _Prepared:
    """The tables of the last call where they are the same: one program is stepped many times."""
    global _last
    last, width, registers = _last, state.numbers.shape[1], state.registers.shape[1]
    if last is None or last.tables is not tables or last.width != width or last.registers != registers:
        last = _last = _prepared(tables, width, registers)
    return last


def _prepared(tables: SteerTables, width: int, registers: int) -> _Prepared:
    _check_columns(tables, width, registers)
    kernels = jit.load()
    held = [getattr(tables, name).contiguous() for name in _TABLES]
    sizes = (
        *(len(tables.classes), *tables.transitions.shape, *map(len, (tables.spans, tables.rules, tables.conditions))),
        *map(len, (tables.mode_clauses, tables.blanks, tables.sequences)),
        *(tables.ids.shape[1], len(tables.gate_modes), *tables.bias_members.shape),
    )
    per_row = (len(each) > 1 for each in (tables.limits, tables.lengths, tables.ids))
    native = kernels.SteerTables(*(each.data_ptr() for each in held), *sizes, *per_row, width, registers)
    return _Prepared(tables, width, registers, held, native, kernels, tables.bias_members.shape[1])


def _check_columns(tables: SteerTables, width: int, registers: int) -> None:
    """A state of other tables may have their shapes and still lack a column that these name."""
    named = tables.rules[:, RuleField.DUE : RuleField.MODE + 1].flatten(), tables.mode_clauses[:, 1]
    column = max(torch.cat(named).tolist(), default=-1)
    if column >= width - 1:  # the last one is scratch
        raise ValueError(f"state.numbers must have more than {column + 1} columns for these tables; got {width}")
    read = tables.rules[:, RuleField.CHANCE_REGISTER], tables.conditions[:, 1]
    register = max(torch.cat(read).tolist(), default=-1)
    if register >= registers:
        raise ValueError(f"state.registers must have at least {register + 1} columns for these tables; got {registers}")


def _addresses(tensors):
    return map(_data_ptr, tensors)


def _address(tensor) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _check(status: int, tables: SteerTables, tokens) -> None:
    if status:
        raise IndexError(f"tokens must be below the vocabulary of {len(tables.classes)}; got {int(tokens.max())}")
