"""steer in plain torch: every rule of every row at once, no host sync."""

import torch

from adapt_kernels.ops.steer.guard import accepts, evaluate, matched
from adapt_kernels.ops.steer.tables import (
    ENDS_AFTER,
    ENDS_BEFORE,
    POSITION,
    RUNNING,
    RUNNING_INDEX,
    Action,
    Decision,
    Kind,
    Role,
    RuleField,
    SpanFlag,
    SteerRows,
    SteerState,
    SteerTables,
    state_columns,
)


@torch.no_grad()
def advance(tables: SteerTables, state: SteerState, tokens, generated: bool = True) -> SteerState:
    """See `adapt_kernels.ops.steer.advance`."""
    moves = tokens >= 0
    num_spans = len(tables.spans)
    since, total, visits, fired, _ = state_columns(num_spans, len(tables.rules))
    patterns = torch.where(moves[:, None], _next_patterns(tables, state.patterns, tokens), state.patterns)
    accept, back = accepts(tables, patterns), matched(tables, patterns)
    opens, closes, breaks, span_flags = tables.spans.long().unbind(1)
    inside = state.flags[:, :num_spans].bool()
    opened = ~inside & accept[:, opens]
    closed = inside & accept[:, closes]
    broken = inside & ~closed & accept[:, breaks]
    toggled, gone = (opened | closed | broken) & moves[:, None], (closed | broken) & moves[:, None]

    numbers = state.numbers.clone()
    counts = torch.ones_like(span_flags) if generated else span_flags & SpanFlag.PROMPT_COUNTS
    tokens_since = numbers[:, since:total] + counts * moves[:, None]
    tag = torch.where(closed, back[:, closes], back[:, breaks])
    numbers[:, total:visits] += torch.where(gone, (tokens_since - tag).clamp(min=0), 0).int()
    numbers[:, since:total] = torch.where(toggled, 0, tokens_since).int()
    numbers[:, visits:fired] += (opened & moves[:, None]).int()
    numbers[:, POSITION] += moves.int() if generated else 0
    _hold_edges(tables, numbers, accept, toggled, moves)
    flags = state.flags.clone()
    flags[:, :num_spans] = torch.where(moves[:, None], (inside | opened) & ~gone, inside).to(torch.uint8)
    restarts = opened & moves[:, None] & ((span_flags & SpanFlag.RESTARTS) > 0)
    patterns = patterns.index_copy(1, closes, patterns[:, closes].masked_fill(restarts, 0))
    return SteerState(patterns, flags, numbers, state.registers)


def _next_patterns(tables: SteerTables, patterns, tokens):
    classes = tables.classes[tokens.clamp(min=0)].long()
    places = torch.arange(patterns.shape[1], device=patterns.device) * tables.transitions.shape[1] + patterns.long()
    return tables.transitions.flatten()[places * tables.transitions.shape[2] + classes[:, None]]


def _hold_edges(tables: SteerTables, numbers, accept, toggled, moves) -> None:
    rule = tables.rules.long()
    held, span = rule[:, RuleField.HELD], rule[:, RuleField.SPAN]
    left = numbers[:, held]
    over = toggled[:, span.clamp(min=0)] if toggled.shape[1] else torch.zeros_like(left, dtype=torch.bool)
    until_toggle = rule[:, RuleField.HOLD_SPAN].bool()
    left = torch.where(until_toggle, torch.where(over, 0, left), (left - 1).clamp(min=0))
    left = torch.where(accept[:, rule[:, RuleField.AFTER]], rule[:, RuleField.HOLD], left)
    _write(numbers, held, left, moves[:, None])


def _write(numbers, columns, values, where) -> None:
    """numbers[:, columns] = values where told; column -1 is the scratch column."""
    numbers.index_copy_(1, columns % numbers.shape[1], torch.where(where, values, numbers[:, columns]).int())
    numbers[:, -1] = 0


@torch.no_grad()
def probe(tables: SteerTables, state: SteerState, rows: SteerRows, uniforms=None, tokens=None):
    """See `adapt_kernels.ops.steer.probe`."""
    guard = evaluate(tables, state, rows, uniforms)
    rule = tables.rules.long()
    wanted = guard.level & guard.edge & (rule[:, RuleField.KIND] == Kind.PROBE)
    drawn = rule[:, RuleField.DRAWN]
    if tokens is None:
        wanted = wanted & (drawn < 0) & (state.numbers[:, RUNNING] < 0)[:, None]
    else:
        accept = accepts(tables, _next_patterns(tables, state.patterns, tokens))
        wanted = wanted & (tokens >= 0)[:, None] & accept[:, drawn]
    numbers = state.numbers.clone()
    _act(tables, numbers, wanted)
    return state._replace(numbers=numbers), wanted


def _act(tables: SteerTables, numbers, acts, ended_too: bool = True) -> None:
    """Counts firings of `acts` [n, R], and notes where the rules ended that act at one step."""
    *_, fired, following = state_columns(len(tables.spans), len(tables.rules))
    numbers[:, fired:following] += acts.int()
    if ended_too:
        _write(numbers, tables.rules[:, RuleField.ENDED].long(), numbers[:, POSITION, None] + 1, acts)


@torch.no_grad()
def decide(tables: SteerTables, state: SteerState, rows: SteerRows, uniforms=None) -> tuple[SteerState, Decision]:
    """See `adapt_kernels.ops.steer.decide`."""
    guard = evaluate(tables, state, rows, uniforms)
    rule = tables.rules.long()
    kind, undrawn = rule[:, RuleField.KIND], rule[:, RuleField.DRAWN] < 0
    numbers = state.numbers.clone()
    running, index = numbers[:, RUNNING].long(), numbers[:, RUNNING_INDEX].long()
    is_prefix = _role(tables, running) == Role.PREFIX
    at_choice = rows.alive & is_prefix & (index >= _length(tables, running))
    idle = rows.alive & (running < 0)

    ready = _ready_forces(tables, state, guard, numbers, idle) & undrawn
    force = _first(ready)
    gate = torch.where(force >= 0, -1, _first(idle[:, None] & guard.level & guard.edge & (kind == Kind.GATE)))
    _act(tables, numbers, _one_hot(force, len(rule)), ended_too=False)
    _act(tables, numbers, _one_hot(gate, len(rule)))
    skip = _blank(tables, state.patterns, force)
    emitting = rows.alive & (running >= 0) & ~at_choice
    sequence = torch.where(force >= 0, _field(rule, RuleField.SEQUENCE, force), _field(rule, RuleField.SEQUENCE, gate))
    sequence, index = torch.where(emitting, running, sequence), torch.where(emitting, index, skip)
    forced, ends = _emit(tables, numbers, sequence, index, (force >= 0) | (gate >= 0) | emitting)
    ends = torch.where((force >= 0) & (forced < 0), ENDS_BEFORE, ends)

    owner = tables.sequences[running.clamp(min=0), 1].long() if len(tables.sequences) else running
    gate = torch.where(at_choice, owner, torch.where(forced < 0, gate, -1))
    free = idle & (force < 0)
    acts = (free[:, None] | at_choice[:, None]) & guard.level & guard.edge
    sample = _first(acts & (kind == Kind.SAMPLE))
    acting = acts & (kind == Kind.BIAS) & ((gate < 0) & (forced < 0))[:, None]
    sample = torch.where(forced < 0, sample, -1)
    _act(tables, numbers, acting | _one_hot(sample, len(rule)))
    flags = state.flags.clone()
    flags[:, len(tables.spans) :] |= guard.place.to(torch.uint8)
    decision = Decision(forced, ends.to(torch.uint8), gate.int(), *_class_bias(tables, acting), sample.int(), acting)
    return SteerState(state.patterns, flags, numbers, state.registers), decision


def step(tables: SteerTables, state: SteerState, rows: SteerRows, tokens, uniforms=None) -> tuple[SteerState, Decision]:
    """See `adapt_kernels.ops.steer.step`."""
    return decide(tables, advance(tables, state, tokens), rows, uniforms)


def _ready_forces(tables: SteerTables, state: SteerState, guard, numbers, idle) -> torch.Tensor:
    """[n, R] forces that start now; writes since when the waiting ones are due."""
    rule = tables.rules.long()
    due = rule[:, RuleField.DUE]
    since, position = numbers[:, due], numbers[:, POSITION, None]
    waiting = since >= 0
    since = torch.where(guard.level & (waiting | guard.edge), torch.where(waiting, since, position), -1)
    settle = rule[:, RuleField.SETTLE]
    settled = accepts(tables, state.patterns)[:, settle] | (position >= since + rule[:, RuleField.WITHIN])
    ready = (since >= 0) & ~guard.half & ((settle < 0) | settled)
    ready = idle[:, None] & ready & (due >= 0) & _writes(tables)
    started = _one_hot(_first(ready), len(rule))
    # A rule that could start and lost to an earlier one has had its edge, unless it may still settle.
    since = torch.where(started | (ready & (settle < 0)), -1, since)
    _write(numbers, due, since, idle[:, None])
    return ready


def _writes(tables: SteerTables) -> torch.Tensor:
    """[T, R] bool: rules whose sequence holds something, or that stop the row."""
    rule = tables.rules.long()
    sequence = rule[:, RuleField.SEQUENCE]
    if not len(tables.sequences):
        return torch.zeros(1, len(rule), dtype=torch.bool, device=rule.device)
    return (sequence >= 0) & ((tables.lengths[:, sequence.clamp(min=0)] > 0) | (rule[:, RuleField.STOP] > 0))


def _first(holds) -> torch.Tensor:
    """[n] int64: the first rule that holds in [n, R], -1 = none."""
    if holds.shape[1] == 0:
        return torch.full((len(holds),), -1, device=holds.device)
    return torch.where(holds.any(1), holds.int().argmax(1), -1)


def _one_hot(rule, num_rules: int) -> torch.Tensor:
    return rule[:, None] == torch.arange(num_rules, device=rule.device)


def _field(rule, field, index) -> torch.Tensor:
    """[n]: a field of the rules `index` [n], -1 for none."""
    return torch.where(index >= 0, rule[index.clamp(min=0), field], -1) if len(rule) else index


def _role(tables: SteerTables, sequence) -> torch.Tensor:
    if not len(tables.sequences):
        return torch.full_like(sequence, -1)
    return torch.where(sequence >= 0, tables.sequences[sequence.clamp(min=0), 2].long(), -1)


def _length(tables: SteerTables, sequence) -> torch.Tensor:
    if not len(tables.sequences):
        return torch.zeros_like(sequence)
    lengths = tables.lengths.long().expand(len(sequence), -1)
    return torch.where(sequence >= 0, lengths.gather(1, sequence.clamp(min=0)[:, None])[:, 0], 0)


def _blank(tables: SteerTables, patterns, force) -> torch.Tensor:
    """[n]: leading white-space ids of the starting force that the history's text already ends with."""
    rule, count, pattern = tables.blanks.long().unbind(1)
    fits = accepts(tables, patterns)[:, pattern] & (rule == force[:, None])
    counts = torch.where(fits, count, 0)
    return torch.nn.functional.pad(counts, (1, 0)).amax(1)


def _emit(tables: SteerTables, numbers, sequence, index, writes):
    """The next id of each row's sequence, -1 = none, and whether the row ends after it; moves the rows on."""
    length = _length(tables, sequence)
    emits = writes & (sequence >= 0) & (index < length)
    if not len(tables.sequences):
        return torch.full_like(sequence, -1), torch.zeros_like(sequence)
    start, owner, role = tables.sequences.long()[sequence.clamp(min=0)].unbind(1)
    ids = tables.ids.long().expand(len(sequence), -1)
    place = torch.where(emits, start + index, 0)
    forced = torch.where(emits, ids.gather(1, place[:, None])[:, 0], -1)
    over = emits & (index + 1 >= length) & (role != Role.PREFIX)
    numbers[:, RUNNING] = torch.where(emits, torch.where(over, -1, sequence), numbers[:, RUNNING]).int()
    numbers[:, RUNNING_INDEX] = torch.where(emits, torch.where(over, 0, index + 1), numbers[:, RUNNING_INDEX]).int()
    rule = tables.rules.long()
    ended = _one_hot(torch.where(over, owner, -1), len(rule))
    _write(numbers, rule[:, RuleField.ENDED], numbers[:, POSITION, None] + 1, ended)
    stops = over & (role == Role.FORCE) & (rule[owner, RuleField.STOP] > 0)
    return forced, torch.where(stops, ENDS_AFTER, 0)


def _class_bias(tables: SteerTables, acting) -> tuple[torch.Tensor, torch.Tensor]:
    """scale and bias [n, E] of the bias rules that hold: scales, then the sum of additions, then only, then ban."""
    owner, action = tables.biases.long().unbind(1)
    acts, amount = acting[:, owner, None], tables.bias_amounts[:, None]
    member, action = tables.bias_members, action[:, None]
    scales = torch.where(acts & member & (action == Action.SCALE), amount, 1.0)
    added = torch.where(acts & member & (action == Action.ADD), amount, 0.0)
    scale = scales.new_ones(len(acting), member.shape[1])
    bias = torch.zeros_like(scale)
    for each in range(len(tables.biases)):  # float32 in the order of the rules: other orders round differently
        scale, bias = scale * scales[:, each], bias + added[:, each]
    out = acts & torch.where(action == Action.ONLY, ~member, member & (action == Action.BAN))
    return scale, bias.masked_fill(out.any(1), float("-inf"))


@torch.no_grad()
def settle(tables: SteerTables, state: SteerState, rows: SteerRows, decision: Decision, tokens, uniforms=None):
    """See `adapt_kernels.ops.steer.settle`."""
    guard = evaluate(tables, state, rows, uniforms)
    rule = tables.rules.long()
    drew = rows.alive & (decision.forced < 0) & (decision.ends == 0)
    accept = accepts(tables, _next_patterns(tables, state.patterns, tokens))
    numbers = state.numbers.clone()
    is_force, drawn = rule[:, RuleField.KIND] == Kind.FORCE, rule[:, RuleField.DRAWN]
    ready = drew[:, None] & is_force & (drawn >= 0) & accept[:, drawn] & guard.level & guard.edge & _writes(tables)
    force = _first(ready)
    chosen = torch.where(drew & (force < 0), decision.gate.long(), -1)
    _record_modes(tables, numbers, chosen, tokens)
    replaced = force >= 0
    _act(tables, numbers, _one_hot(force, len(rule)), ended_too=False)
    sequence = _field(rule, RuleField.SEQUENCE, force)
    forced, ends = _emit(tables, numbers, sequence, _blank(tables, state.patterns, force), replaced)
    ends = torch.where(replaced & (forced < 0), ENDS_BEFORE, ends)
    tokens = torch.where(forced >= 0, forced, tokens)
    return state._replace(numbers=numbers), tokens, torch.where(drew, ends.to(torch.uint8), decision.ends), replaced


def _record_modes(tables: SteerTables, numbers, gate, tokens) -> None:
    """Notes the mode that `tokens` [n] open at the gates `gate` [n], -1 = none, and starts the ids that follow it."""
    if not len(tables.gate_modes):
        return
    owner, mode, token, suffix = tables.gate_modes.long().unbind(1)
    own = owner == gate[:, None]
    listed = own & (token == tokens[:, None])
    match = torch.where(listed.any(1, keepdim=True), listed, own & (token == -1))
    found, place = match.any(1), match.int().argmax(1)
    column = tables.rules.long()[:, RuleField.MODE]
    at_gate = _one_hot(gate, len(tables.rules))
    _write(numbers, column, torch.where(found, mode[place], -1)[:, None].expand(at_gate.shape), at_gate)
    following = torch.where(found, suffix[place], -1)
    numbers[:, RUNNING] = torch.where(gate >= 0, following, numbers[:, RUNNING]).int()
    numbers[:, RUNNING_INDEX] = torch.where(gate >= 0, 0, numbers[:, RUNNING_INDEX]).int()
    _write(numbers, tables.rules.long()[:, RuleField.ENDED], numbers[:, POSITION, None] + 1, at_gate)
