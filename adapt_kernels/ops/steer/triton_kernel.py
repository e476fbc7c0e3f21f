"""steer on Triton: one launch per half-step or step, a program per row; no host sync, so a CUDA graph can hold it."""

from contextlib import nullcontext
from typing import NamedTuple

import torch

from adapt_kernels.ops.steer.arguments import contiguous, contiguous_or_none, empty_decision
from adapt_kernels.ops.steer.tables import Decision, SteerRows, SteerState, SteerTables
from adapt_kernels.triton_driver import OPTIONS

try:
    import triton

    from adapt_kernels.ops.steer import triton_steps
except ModuleNotFoundError:
    triton = None


class Sizes(NamedTuple):
    """Sizes of the tables and the state; strides are 0 where all rows share a line."""

    patterns: int
    states: int
    classes: int
    spans: int
    rules: int
    conditions: int
    mode_clauses: int
    blanks: int
    gate_modes: int
    biases: int
    bias_classes: int
    limits_stride: int
    lengths_stride: int
    ids_stride: int
    width: int
    registers: int


def advance(tables: SteerTables, state: SteerState, tokens, generated: bool = True) -> SteerState:
    """See `adapt_kernels.ops.steer.advance`."""
    tables, state, sizes = _read(tables, state)
    new = SteerState._make([*map(torch.empty_like, state[:3]), state.registers])
    arguments = (tables, sizes, state, tokens.contiguous(), int(generated), *new[:3])
    _launch("advance", state, arguments, {**_span_blocks(sizes), **_rule_blocks(sizes)})
    return new


def probe(tables: SteerTables, state: SteerState, rows: SteerRows, uniforms=None, tokens=None):
    """See `adapt_kernels.ops.steer.probe`."""
    tables, state, sizes = _read(tables, state)
    rows, uniforms, tokens = contiguous(rows), contiguous_or_none(uniforms), contiguous_or_none(tokens)
    numbers, wanted = torch.empty_like(state.numbers), torch.empty_like(rows.uses)
    arguments = (tables, sizes, state, rows, uniforms, tokens, numbers, wanted)
    _launch("probe", state, arguments, _rule_blocks(sizes))
    return state._replace(numbers=numbers), wanted


def decide(tables: SteerTables, state: SteerState, rows: SteerRows, uniforms=None) -> tuple[SteerState, Decision]:
    """See `adapt_kernels.ops.steer.decide`."""
    tables, state, sizes = _read(tables, state)
    rows = contiguous(rows)
    flags, numbers = torch.empty_like(state.flags), torch.empty_like(state.numbers)
    decision = empty_decision(rows, sizes.bias_classes)
    arguments = (tables, sizes, state, rows, contiguous_or_none(uniforms), flags, numbers, decision)
    blocks = {**_rule_blocks(sizes), "CLASSES": _block(sizes.bias_classes), "FLAGS": _block(sizes.spans)}
    _launch("decide", state, arguments, blocks)
    return state._replace(flags=flags, numbers=numbers), decision


def step(tables: SteerTables, state: SteerState, rows: SteerRows, tokens, uniforms=None) -> tuple[SteerState, Decision]:
    """See `adapt_kernels.ops.steer.step`."""
    tables, state, sizes = _read(tables, state)
    rows = contiguous(rows)
    between = SteerState._make([*map(torch.empty_like, state[:3]), state.registers])
    flags, numbers = torch.empty_like(state.flags), torch.empty_like(state.numbers)
    decision = empty_decision(rows, sizes.bias_classes)
    inputs = (tables, sizes, state, rows, tokens.contiguous(), contiguous_or_none(uniforms))
    blocks = {**_span_blocks(sizes), **_rule_blocks(sizes), "CLASSES": _block(sizes.bias_classes)}
    _launch("step", state, (*inputs, between, flags, numbers, decision), blocks)
    return between._replace(flags=flags, numbers=numbers), decision


def settle(tables: SteerTables, state: SteerState, rows: SteerRows, decision: Decision, tokens, uniforms=None):
    """See `adapt_kernels.ops.steer.settle`."""
    tables, state, sizes = _read(tables, state)
    rows, decision, tokens = contiguous(rows), contiguous(decision), tokens.contiguous()
    numbers, written = torch.empty_like(state.numbers), torch.empty_like(tokens)
    ends, replaced = torch.empty_like(decision.ends), torch.empty_like(rows.alive)
    outputs = (numbers, written, ends, replaced)
    arguments = (tables, sizes, state, rows, decision, tokens, contiguous_or_none(uniforms), *outputs)
    _launch("settle", state, arguments, _rule_blocks(sizes))
    return state._replace(numbers=numbers), written, ends, replaced


class _Prepared(NamedTuple):
    """Tables as they are read, with their sizes: told once for the many steps of a call."""

    tables: SteerTables
    width: int
    registers: int
    read: SteerTables
    sizes: Sizes


_last: _Prepared | None = None


def _read(tables: SteerTables, state: SteerState) -> tuple[SteerTables, SteerState, Sizes]:
    global _last
    last, width, registers = _last, state.numbers.shape[1], state.registers.shape[1]
    if last is None or last.tables is not tables or last.width != width or last.registers != registers:
        read = contiguous(tables)
        last = _Prepared(tables, width, registers, read, _sizes(read, width, registers))
        if read is tables:  # a copy would go stale
            _last = last
    return last.read, contiguous(state), last.sizes


def _sizes(tables: SteerTables, width: int, registers: int) -> Sizes:
    lines = (tables.limits, tables.lengths, tables.ids)
    numbers = (
        *tables.transitions.shape,
        *map(len, (tables.spans, tables.rules, tables.conditions, tables.mode_clauses, tables.blanks)),
        *(len(tables.gate_modes), *tables.bias_members.shape),
        *(each.stride(0) if len(each) > 1 else 0 for each in lines),
    )
    return Sizes._make((*numbers, width, registers))


def _block(size: int) -> int:
    return triton.next_power_of_2(max(size, 1))


def _span_blocks(sizes: Sizes) -> dict[str, int]:
    return {"PATTERNS": _block(sizes.patterns), "SPANS": _block(sizes.spans)}


def _rule_blocks(sizes: Sizes) -> dict[str, int]:
    return {"RULES": _block(sizes.rules), "WIDTH": _block(sizes.width)}


def _launch(name: str, state: SteerState, arguments: tuple, blocks: dict[str, int]) -> None:
    rows, device = len(state.numbers), state.numbers.device
    if rows == 0:
        return
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        getattr(triton_steps, name)[(rows,)](*arguments, **blocks, num_warps=1, **OPTIONS)
