"""Clauses of a row's rules on the device. A program is a row; t: SteerTables, z: Sizes, s: SteerState, r: SteerRows."""

import triton
import triton.language as tl

from adapt_kernels.ops.steer.tables import FIRST_SPAN, POSITION, Kind, Limit, RuleField
from adapt_kernels.ops.triton_random import PURPOSE_RULE, uniform

FIELDS = tl.constexpr(len(RuleField))
LIMITS = tl.constexpr(len(Limit))
PLACE = tl.constexpr(POSITION)
SINCE = tl.constexpr(FIRST_SPAN)
KIND = tl.constexpr(int(RuleField.KIND))
SPAN = tl.constexpr(int(RuleField.SPAN))
INSIDE = tl.constexpr(int(RuleField.INSIDE))
AFTER = tl.constexpr(int(RuleField.AFTER))
DRAWN = tl.constexpr(int(RuleField.DRAWN))
TIMES = tl.constexpr(int(RuleField.TIMES))
CHANCE = tl.constexpr(int(RuleField.CHANCE))
CHANCE_REGISTER = tl.constexpr(int(RuleField.CHANCE_REGISTER))
NEEDS_MODE = tl.constexpr(int(RuleField.NEEDS_MODE))
HELD = tl.constexpr(int(RuleField.HELD))
ENDED = tl.constexpr(int(RuleField.ENDED))
STREAM = tl.constexpr(int(RuleField.STREAM))
AT = tl.constexpr(int(Limit.AT))
COUNT = tl.constexpr(int(Limit.COUNT))
TOTAL = tl.constexpr(int(Limit.TOTAL))
ENTRY = tl.constexpr(int(Limit.ENTRY))
LEFT = tl.constexpr(int(Limit.LEFT))
EVERY = tl.constexpr(int(Limit.EVERY))
GATE, FORCE, SAMPLE, PROBE, BIAS = (tl.constexpr(int(kind)) for kind in Kind)


@triton.jit
def field(t, z, rule, name):
    """A column of the rules' table; -1 for no rule."""
    return tl.load(t.rules + rule * FIELDS + name, mask=(rule >= 0) & (rule < z.rules), other=-1)


@triton.jit
def _state_of(t, z, s, row, pattern):
    return tl.load(s.patterns + row * z.patterns + pattern, mask=pattern >= 0, other=0).to(tl.int32)


@triton.jit
def in_state(t, z, pattern, state):
    """(accepts, tokens of the match) of patterns in given states; pattern -1 never completes."""
    place = pattern * z.states + state
    accepts = tl.load(t.accept + place, mask=pattern >= 0, other=0) != 0
    return accepts, tl.load(t.back + place, mask=pattern >= 0, other=0).to(tl.int32)


@triton.jit
def accepts(t, z, s, row, pattern):
    """Patterns that the last token completed."""
    return in_state(t, z, pattern, _state_of(t, z, s, row, pattern))[0]


@triton.jit
def next_state(t, z, s, row, pattern, token):
    """States of patterns after one more token."""
    kind = tl.load(t.classes + tl.maximum(token, 0)).to(tl.int32)
    place = (pattern * z.states + _state_of(t, z, s, row, pattern)) * z.classes + kind
    return tl.load(t.transitions + place, mask=pattern >= 0, other=0).to(tl.int32)


@triton.jit
def next_accepts(t, z, s, row, pattern, token):
    """Patterns that `token` would complete."""
    return in_state(t, z, pattern, next_state(t, z, s, row, pattern, token))[0]


@triton.jit
def inside_of(z, s, row, span, exists):
    """Whether the row is inside spans."""
    return tl.load(s.flags + row * (z.spans + z.rules) + span, mask=exists, other=0) != 0


@triton.jit
def number(z, s, row, column, exists):
    """Numbers of the row's state, 0 where there is none."""
    return tl.load(s.numbers + row * z.width + column, mask=exists & (column >= 0), other=0)


@triton.jit
def _in_range(t, z, row, rule, value, limit):
    bounds = t.limits + row * z.limits_stride + (rule * LIMITS + limit) * 2
    low = tl.load(bounds, mask=rule < z.rules, other=0)
    return (value >= low) & (value < tl.load(bounds + 1, mask=rule < z.rules, other=0))


@triton.jit
def places(t, z, s, r, row, rule):
    """`in` and `mode`, for the rules the row uses."""
    span = field(t, z, rule, SPAN)
    inside = inside_of(z, s, row, span, span >= 0)
    hits = rule < 0
    for clause in range(0, z.mode_clauses):
        owner = tl.load(t.mode_clauses + 3 * clause)
        column = tl.load(t.mode_clauses + 3 * clause + 1)
        chosen = number(z, s, row, column, column >= 0) == tl.load(t.mode_clauses + 3 * clause + 2)
        hits = hits | ((rule == owner) & chosen)
    uses = tl.load(r.uses + row * z.rules + rule, mask=rule < z.rules, other=0) != 0
    place = (span < 0) | (inside == (field(t, z, rule, INSIDE) > 0))
    return place & (hits | (field(t, z, rule, NEEDS_MODE) <= 0)) & uses & (tl.load(r.alive + row) != 0)


@triton.jit
def levels(t, z, s, r, row, rule, place):
    """Every clause but the edges."""
    owned = field(t, z, rule, SPAN)
    span, some = tl.maximum(owned, 0), (rule < z.rules) & (z.spans > 0)
    inside = inside_of(z, s, row, span, some)
    close = tl.load(t.spans + 4 * span + 1, mask=some, other=-1)
    _, back = in_state(t, z, close, _state_of(t, z, s, row, close))
    since = number(z, s, row, SINCE + span, some)
    visit = tl.where(inside, tl.maximum(since - back, 0), since)
    total = number(z, s, row, SINCE + z.spans + span, some) + tl.where(inside, visit, 0)
    entry = number(z, s, row, SINCE + 2 * z.spans + span, some)
    position = tl.load(s.numbers + row * z.width + PLACE)
    left = tl.load(r.max_new_tokens + row) - position
    every = tl.minimum(since, position - number(z, s, row, field(t, z, rule, ENDED), rule < z.rules))
    holds = _in_range(t, z, row, rule, tl.where(owned < 0, position, visit), COUNT)
    holds = holds & _in_range(t, z, row, rule, total, TOTAL) & _in_range(t, z, row, rule, entry, ENTRY)
    holds = holds & _in_range(t, z, row, rule, left, LEFT) & _in_range(t, z, row, rule, every, EVERY)
    for condition in range(0, z.conditions):
        owner = tl.load(t.conditions + 2 * condition)
        # The same in every lane: the interpreter cannot widen the outcome of a comparison of floats.
        register = tl.load(t.conditions + 2 * condition + 1) + rule * 0
        value = tl.load(s.registers + row * z.registers + register)
        low = tl.load(t.condition_ranges + 2 * condition + rule * 0)
        high = tl.load(t.condition_ranges + 2 * condition + 1 + rule * 0)
        # An open end holds infinity too, and nothing holds NaN.
        holds = holds & ((rule != owner) | ((value >= low) & ((value < high) | (high == float("inf")))))
    fired = number(z, s, row, SINCE + 3 * z.spans + rule, rule < z.rules)
    return place & holds & (fired < field(t, z, rule, TIMES))


@triton.jit
def edges(t, z, s, r, row, rule, uniforms):
    """`at`, `after` and the chance."""
    after, held = field(t, z, rule, AFTER), field(t, z, rule, HELD)
    position = tl.load(s.numbers + row * z.width + PLACE)
    edge = (after < 0) | tl.where(held >= 0, number(z, s, row, held, held >= 0) > 0, accepts(t, z, s, row, after))
    edge = edge & _in_range(t, z, row, rule, position, AT)
    kind = field(t, z, rule, CHANCE)
    low = tl.load(t.chances + 2 * rule, mask=rule < z.rules, other=0.0)
    high = tl.load(t.chances + 2 * rule + 1, mask=rule < z.rules, other=0.0)
    register = s.registers + row * z.registers + field(t, z, rule, CHANCE_REGISTER)
    ramp = tl.load(register, mask=kind == 2, other=0.0).to(tl.float64)
    ramp = (ramp - low) / tl.where(kind == 2, high - low, 1.0)
    ramp = tl.where(ramp < 0, 0.0, tl.where(ramp > 1, 1.0, ramp))  # NaN stays
    if uniforms is not None:
        u = tl.load(uniforms + row * z.rules + rule, mask=rule < z.rules, other=0.0)
    else:
        stream = tl.maximum(field(t, z, rule, STREAM), 0)
        u = uniform(tl.load(r.seeds + row), position.to(tl.int64), PURPOSE_RULE, stream)
    return edge & ((kind <= 0) | (u < tl.where(kind == 2, ramp, low)))
