"""Which clauses of which rules hold, for every row at once; plain torch, no host sync."""

from typing import NamedTuple

import torch

from adapt_kernels.ops.steer.tables import (
    POSITION,
    Limit,
    RuleField,
    SteerRows,
    SteerState,
    SteerTables,
    state_columns,
)
from adapt_kernels.philox import PURPOSE_RULE, uniform


class Guard(NamedTuple):
    """[n, R] bool each."""

    place: torch.Tensor  # `in` and `mode`
    level: torch.Tensor  # all but the edges
    edge: torch.Tensor  # `at`, `after` and the chance
    half: torch.Tensor  # a close that the rule waits for is half matched


def accepts(tables: SteerTables, patterns: torch.Tensor) -> torch.Tensor:
    """[n, P + 1] bool: patterns just completed; the last one, "no pattern", never is."""
    return _of_patterns(tables.accept, patterns)


def matched(tables: SteerTables, patterns: torch.Tensor) -> torch.Tensor:
    """[n, P + 1] int32: tokens of the match completed or begun."""
    return _of_patterns(tables.back, patterns).int()


def _of_patterns(table, patterns):
    places = (
        torch.nn.functional.pad(patterns.long(), (0, 1))
        + torch.arange(len(table), device=table.device) * table.shape[1]
    )
    return table.flatten()[places]


def evaluate(tables: SteerTables, state: SteerState, rows: SteerRows, uniforms=None) -> Guard:
    """Every rule's clauses in the state before this step's token; uniforms [n, R] replaces the firing draws."""
    rule = tables.rules.long()
    num_spans, num_rules = len(tables.spans), len(rule)
    since, total, visits, fired, _ = state_columns(num_spans, num_rules)
    numbers, accept = state.numbers, accepts(tables, state.patterns)
    position = numbers[:, POSITION, None]
    inside = state.flags[:, :num_spans].bool()
    close = tables.spans[:, 1].long()
    back = matched(tables, state.patterns)[:, close]
    tokens_since = numbers[:, since:total]
    count = torch.where(inside, (tokens_since - back).clamp(min=0), tokens_since)
    all_tokens = numbers[:, total:visits] + torch.where(inside, count, 0)
    half = inside & (back > 0) & ~accept[:, close]

    span = rule[:, RuleField.SPAN]
    spanless = span < 0
    place = spanless | (_of_rule(inside, span) == (rule[:, RuleField.INSIDE] > 0))
    place = place & _modes_hold(tables, numbers)
    ended = torch.where(rule[:, RuleField.ENDED] >= 0, numbers[:, rule[:, RuleField.ENDED]], 0)
    limited = {
        Limit.AT: position.expand(-1, num_rules),
        Limit.COUNT: torch.where(spanless, position, _of_rule(count, span)),
        Limit.TOTAL: _of_rule(all_tokens, span),
        Limit.ENTRY: _of_rule(numbers[:, visits:fired], span),
        Limit.LEFT: (rows.max_new_tokens[:, None] - position).expand(-1, num_rules),
        Limit.EVERY: torch.minimum(_of_rule(tokens_since, span), position - ended),
    }
    values = torch.stack([limited[each] for each in Limit], 2)
    in_range = (values >= tables.limits[..., 0]) & (values < tables.limits[..., 1])
    level = rows.uses & rows.alive[:, None] & place & in_range[:, :, Limit.COUNT :].all(2)
    level = level & _conditions_hold(tables, state.registers)
    level = level & (numbers[:, fired : fired + num_rules] < rule[:, RuleField.TIMES])
    after, held = rule[:, RuleField.AFTER], rule[:, RuleField.HELD]
    edge = (after < 0) | torch.where(held >= 0, numbers[:, held] > 0, accept[:, after])
    edge = edge & in_range[:, :, Limit.AT] & _chances_hold(tables, state, rows, position, uniforms)
    waits = (half[:, None, :] & tables.waits).any(2)
    return Guard(place & rows.uses & rows.alive[:, None], level, edge, waits)


def _of_rule(per_span, span):
    """[n, R] of [n, N]; rules without a span get the first span's, or 0."""
    if per_span.shape[1] == 0:
        return per_span.new_zeros(len(per_span), len(span))
    return per_span[:, span.clamp(min=0)]


def _modes_hold(tables: SteerTables, numbers) -> torch.Tensor:
    needs = tables.rules[:, RuleField.NEEDS_MODE].bool()
    rule, column, mode = tables.mode_clauses.long().unbind(1)
    hits = torch.zeros(len(numbers), len(needs), dtype=torch.int32, device=numbers.device)
    hits.index_add_(1, rule, (numbers[:, column] == mode).int())
    return ~needs | (hits > 0)


def _conditions_hold(tables: SteerTables, registers) -> torch.Tensor:
    rule, register = tables.conditions.long().unbind(1)
    value, (low, high) = registers[:, register], tables.condition_ranges.unbind(1)
    # An open end holds infinity too, and nothing holds NaN.
    holds = (value >= low) & ((value < high) | (high == float("inf")))
    fails = torch.zeros(len(registers), len(tables.rules), dtype=torch.int32, device=registers.device)
    fails.index_add_(1, rule, (~holds).int())
    return fails == 0


def _chances_hold(tables: SteerTables, state: SteerState, rows: SteerRows, position, uniforms) -> torch.Tensor:
    kind = tables.rules[:, RuleField.CHANCE]
    register = tables.rules[:, RuleField.CHANCE_REGISTER].long().clamp(min=0)
    low, high = tables.chances.unbind(1)
    if state.registers.shape[1]:
        value = state.registers[:, register].double()
        ramp = ((value - low) / torch.where(kind == 2, high - low, 1.0)).clamp(0, 1)
    else:
        ramp = torch.zeros(len(position), len(kind), dtype=torch.float64, device=position.device)
    if uniforms is None:
        stream = tables.rules[:, RuleField.STREAM].long().expand(len(position), -1)
        uniforms = uniform(rows.seeds[:, None], position.long(), PURPOSE_RULE, stream)
    return (kind == 0) | (uniforms < torch.where(kind == 2, ramp, low))
