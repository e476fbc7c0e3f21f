"""From programs to the tensors of `ops.steer`: several programs side by side, each row using the rules of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from adapt_kernels.ops.steer import RUNNING, UNBOUNDED, Limit, SteerState, SteerTables
from adapt_kernels.program.class_tables import bias_tables, pattern_tables
from adapt_kernels.program.clauses import Ramp, RowInput
from adapt_kernels.program.program import Program
from adapt_kernels.program.resolved import RuleTokens
from adapt_kernels.program.row_inputs import bound_values
from adapt_kernels.program.rule_rows import RuleRows
from adapt_kernels.program.rules import Rule, Sample, label_of

_RANGES = {"at": Limit.AT, "count": Limit.COUNT, "total": Limit.TOTAL, "entry": Limit.ENTRY, "left": Limit.LEFT}


@dataclass(frozen=True)
class Compiled:
    """Tables and what names mean in them.

    rules: of all programs, in order; first_rule: of each program. spans: (program, name). registers: column of each
    (name, window). surprise: column of Mirostat's mu per sample rule. outer_mode: the state's column for the mode that
    the caller decides, or None. fresh: `SteerState.numbers` of a row before its prompt.
    """

    programs: tuple[Program, ...]
    tables: SteerTables
    rules: tuple[Rule, ...]
    first_rule: tuple[int, ...]
    spans: tuple[tuple[int, str], ...]
    registers: Mapping[tuple[str, int], int]
    surprise: Mapping[int, int]
    outer_mode: int | None
    fresh: torch.Tensor

    def fresh_state(self, registers: torch.Tensor) -> SteerState:
        """Of rows before their prompt, whose registers [rows, F] are these."""
        rows, tables, device = len(registers), self.tables, self.fresh.device
        return SteerState(
            torch.zeros(rows, len(tables.transitions), dtype=torch.uint8, device=device),
            torch.zeros(rows, len(tables.spans) + len(tables.rules), dtype=torch.uint8, device=device),
            self.fresh.repeat(rows, 1),
            registers.to(device),
        )

    def mirostat(self, index: int) -> tuple[float, float]:
        """Surprise and rate of the rule `rules[index]`, one of `surprise`."""
        rule = self.rules[index]
        assert isinstance(rule, Sample) and rule.surprise is not None and rule.rate is not None
        return rule.surprise, rule.rate

    def rule_tokens(self, index: int) -> RuleTokens:
        """Automata and ids of the rule `rules[index]`."""
        owner = sum(first <= index for first in self.first_rule) - 1
        return self.programs[owner].rule_tokens[index - self.first_rule[owner]]


def compile_programs(
    programs: Sequence[Program], vocab_size: int, outer_modes=(), inputs=None, device=None
) -> Compiled:
    """Tables of the distinct programs of a call.

    outer_modes: names of the modes that the caller decides itself, by index. inputs: {name: one value per row} for
    `Program.bounds` (an integer or None) and `Program.sequences` (ids). Raises ValueError that names the rule, before
    anything runs.
    """
    programs, inputs = tuple(programs), inputs or {}
    for program in programs:
        program.check_vocabulary(vocab_size)
    rows = RuleRows(programs, tuple(outer_modes))
    tables = SteerTables(
        **pattern_tables(rows.automata, vocab_size),
        **bias_tables(rows.rules, rows.tokens, vocab_size),
        spans=_ints(rows.span_rows, 4),
        rules=_ints(rows.fields, rows.width),
        limits=row_limits(rows.rules, inputs),
        chances=torch.tensor([_chance(rule) for rule in rows.rules], dtype=torch.float64).reshape(-1, 2),
        waits=torch.tensor(rows.waits, dtype=torch.bool).reshape(len(rows.rules), len(rows.spans)),
        conditions=_ints([each[:2] for each in rows.conditions], 2),
        condition_ranges=torch.tensor([each[2:] for each in rows.conditions], dtype=torch.float32).reshape(-1, 2),
        mode_clauses=_ints(rows.mode_clauses, 3),
        blanks=_ints(rows.blanks, 3),
        gate_modes=_ints(rows.gate_modes, 4),
        **_sequences(rows, inputs, vocab_size),
    )
    fresh = torch.tensor([0] * rows.following + rows.defaults + [0], dtype=torch.int32)
    fresh[RUNNING] = -1
    return Compiled(
        programs=programs,
        tables=SteerTables(*(each.to(device) for each in tables)),
        rules=rows.rules,
        first_rule=rows.first_rule,
        spans=rows.spans,
        registers=rows.registers,
        surprise=rows.surprise,
        outer_mode=rows.outer_mode,
        fresh=fresh.to(device),
    )


def _ints(rows, width: int) -> torch.Tensor:
    return torch.tensor(list(rows), dtype=torch.int32).reshape(-1, width)


def _chance(rule: Rule) -> tuple[float, float]:
    if isinstance(rule.chance, Ramp):
        return rule.chance.low, rule.chance.high
    return (0.0 if rule.chance is None else rule.chance), 0.0


def row_limits(rules: Sequence[Rule], inputs: Mapping) -> torch.Tensor:
    """`SteerTables.limits`: one line, or one per row where rows bring bounds."""
    bounds = torch.tensor([-UNBOUNDED, UNBOUNDED], dtype=torch.int32).repeat(len(rules), len(Limit), 1)
    per_row = []
    for index, rule in enumerate(rules):
        given = {_RANGES[name]: (each.low, each.high) for name, each in rule.when.ranges.items()}
        if rule.when.every is not None:
            given[Limit.EVERY] = (rule.when.every, None)
        for limit, pair in given.items():
            for side, bound in enumerate(pair):
                if isinstance(bound, RowInput):
                    per_row.append((index, limit, side, _row_bounds(bound, index, rule, side, limit, inputs)))
                elif bound is not None:
                    bounds[index, limit, side] = min(bound, UNBOUNDED)
    if not per_row:
        return bounds[None]
    bounds = bounds.repeat(len(per_row[0][-1]), 1, 1, 1)
    for index, limit, side, values in per_row:
        bounds[:, index, limit, side] = torch.tensor(values, dtype=torch.int32)
    return bounds


def _row_bounds(bound: RowInput, index: int, rule: Rule, side: int, limit: Limit, inputs: Mapping) -> list[int]:
    smallest = 1 if limit == Limit.EVERY else 0
    values = bound_values(bound.name, inputs[bound.name], smallest, label_of(index, rule))
    # A row that brings None does without the rule: nothing is at least so large, or below so little.
    missing = -UNBOUNDED if side else UNBOUNDED
    return [missing if each is None else min(each, UNBOUNDED) for each in values]


def _sequences(rows: RuleRows, inputs: Mapping, vocab_size: int) -> dict[str, torch.Tensor]:
    """sequences, lengths and ids; where rows bring sequences, each row has a line of its own."""
    lists = [
        [_checked(ids, vocab_size, each.name) for ids in inputs[each.name]]
        if isinstance(each, RowInput)
        else [list(each)]
        for each, *_ in rows.sequences
    ]
    lines = max(map(len, lists), default=1)
    widths = [max(map(len, each), default=0) for each in lists]
    starts = [sum(widths[:index]) for index in range(len(widths))]
    ids = torch.zeros(lines, max(sum(widths), 1), dtype=torch.int32)
    lengths = torch.zeros(lines, len(lists), dtype=torch.int32)
    for index, (start, own) in enumerate(zip(starts, lists, strict=True)):
        for line in range(lines):
            line_ids = own[line if len(own) > 1 else 0]
            lengths[line, index] = len(line_ids)
            ids[line, start : start + len(line_ids)] = torch.tensor(line_ids, dtype=torch.int32)
    table = [(start, rule, int(role)) for start, (_, rule, role) in zip(starts, rows.sequences, strict=True)]
    return {"sequences": _ints(table, 3), "lengths": lengths, "ids": ids}


def _checked(ids, vocab_size: int, name: str) -> list[int]:
    ids = [] if ids is None else ids
    if not isinstance(ids, (list, tuple)) or any(
        type(token) is not int or not 0 <= token < vocab_size for token in ids
    ):
        raise ValueError(f"the row input {name!r} must hold ids below the vocabulary of {vocab_size}; got {ids}")
    return list(ids)
