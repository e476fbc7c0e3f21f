"""The launches of steer: a program is a row, its rules are lanes. Reads one state, writes another."""

import triton
import triton.language as tl

from adapt_kernels.ops.steer.tables import ENDS_BEFORE, RuleField, SpanFlag
from adapt_kernels.ops.steer.triton_guard import (
    AFTER,
    BIAS,
    DRAWN,
    FORCE,
    GATE,
    HELD,
    KIND,
    PLACE,
    PROBE,
    SAMPLE,
    SINCE,
    SPAN,
    accepts,
    edges,
    field,
    in_state,
    inside_of,
    levels,
    next_accepts,
    next_state,
    number,
    places,
)
from adapt_kernels.ops.steer.triton_writes import (
    PREFIX,
    RUN,
    RUN_INDEX,
    SEQUENCE,
    act,
    begin,
    blank_of,
    class_bias,
    emit,
    first_of,
    length_of,
    writes_of,
)

BEFORE = tl.constexpr(ENDS_BEFORE)
SETTLE = tl.constexpr(int(RuleField.SETTLE))
WITHIN = tl.constexpr(int(RuleField.WITHIN))
HOLD = tl.constexpr(int(RuleField.HOLD))
HOLD_SPAN = tl.constexpr(int(RuleField.HOLD_SPAN))
DUE = tl.constexpr(int(RuleField.DUE))
MODE = tl.constexpr(int(RuleField.MODE))
PROMPT_COUNTS = tl.constexpr(int(SpanFlag.PROMPT_COUNTS))
RESTARTS = tl.constexpr(int(SpanFlag.RESTARTS))


@triton.jit
def _crossings(t, z, s, row, span, exists, token):
    """(inside, opened, closed, broken, tokens of the tag) of spans as `token` is committed."""
    inside = inside_of(z, s, row, span, exists)
    opens = tl.load(t.spans + 4 * span, mask=exists, other=-1)
    closes = tl.load(t.spans + 4 * span + 1, mask=exists, other=-1)
    breaks = tl.load(t.spans + 4 * span + 2, mask=exists, other=-1)
    opened = ~inside & next_accepts(t, z, s, row, opens, token)
    closed, tag = in_state(t, z, closes, next_state(t, z, s, row, closes, token))
    broke, other_tag = in_state(t, z, breaks, next_state(t, z, s, row, breaks, token))
    return inside, opened, inside & closed, inside & ~closed & broke, tl.where(closed, tag, other_tag)


@triton.jit
def advance(
    t, z, s, tokens, generated, patterns, flags, numbers,
    PATTERNS: tl.constexpr, SPANS: tl.constexpr, RULES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One more committed token."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.load(tokens + row)
    moves = token >= 0
    begin(z, s, row, numbers, WIDTH)
    pattern = tl.arange(0, PATTERNS)
    mine = pattern < z.patterns
    old = tl.load(s.patterns + row * z.patterns + pattern, mask=mine, other=0).to(tl.int32)
    new = next_state(t, z, s, row, tl.where(mine, pattern, -1), token)
    tl.store(patterns + row * z.patterns + pattern, tl.where(moves, new, old).to(tl.uint8), mask=mine)

    span, num_flags = tl.arange(0, SPANS), z.spans + z.rules
    real = span < z.spans
    inside, opened, closed, broken, tag = _crossings(t, z, s, row, span, real, token)
    span_flags = tl.load(t.spans + 4 * span + 3, mask=real, other=0)
    counts = tl.where(generated != 0, 1, span_flags & PROMPT_COUNTS)
    since = number(z, s, row, SINCE + span, real) + counts
    gone, write = closed | broken, real & moves
    place = numbers + row * z.width + SINCE + span
    total = number(z, s, row, SINCE + z.spans + span, real)
    tl.store(place + z.spans, total + tl.where(gone, tl.maximum(since - tag, 0), 0), mask=write)
    tl.store(place, tl.where(gone | opened, 0, since), mask=write)
    visits = number(z, s, row, SINCE + 2 * z.spans + span, real)
    tl.store(place + 2 * z.spans, visits + opened.to(tl.int32), mask=write)
    position = tl.load(s.numbers + row * z.width + PLACE)
    tl.store(numbers + row * z.width + PLACE, position + generated, mask=moves)
    now = tl.where(moves, (inside | opened) & ~gone, inside)
    tl.store(flags + row * num_flags + span, now.to(tl.uint8), mask=real)
    tl.debug_barrier()  # the patterns are written
    closes = tl.load(t.spans + 4 * span + 1, mask=real, other=0)
    tl.store(patterns + row * z.patterns + closes, 0, mask=write & opened & ((span_flags & RESTARTS) > 0))

    rule = tl.arange(0, RULES)
    armed = tl.load(s.flags + row * num_flags + z.spans + rule, mask=rule < z.rules, other=0)
    tl.store(flags + row * num_flags + z.spans + rule, armed, mask=rule < z.rules)
    held, owned = field(t, z, rule, HELD), tl.maximum(field(t, z, rule, SPAN), 0)
    left = number(z, s, row, held, held >= 0)
    _, opened, closed, broken, _ = _crossings(t, z, s, row, owned, (held >= 0) & (z.spans > 0), token)
    kept = tl.where(opened | closed | broken, 0, left)
    left = tl.where(field(t, z, rule, HOLD_SPAN) > 0, kept, tl.maximum(left - 1, 0))
    again = next_accepts(t, z, s, row, field(t, z, rule, AFTER), token)
    left = tl.where(again, field(t, z, rule, HOLD), left)
    tl.store(numbers + row * z.width + held, left, mask=(held >= 0) & moves)


@triton.jit
def probe(t, z, s, r, uniforms, tokens, numbers, wanted, RULES: tl.constexpr, WIDTH: tl.constexpr):
    """The probes that hold before the draw, or with `tokens` after it."""
    row, rule = tl.program_id(0).to(tl.int64), tl.arange(0, RULES)
    begin(z, s, row, numbers, WIDTH)
    place = places(t, z, s, r, row, rule)
    holds = levels(t, z, s, r, row, rule, place) & edges(t, z, s, r, row, rule, uniforms)
    holds = holds & (field(t, z, rule, KIND) == PROBE)
    drawn = field(t, z, rule, DRAWN)
    if tokens is None:
        holds = holds & (drawn < 0) & (tl.load(s.numbers + row * z.width + RUN) < 0)
    else:
        token = tl.load(tokens + row)
        holds = holds & (token >= 0) & next_accepts(t, z, s, row, drawn, token)
    act(t, z, s, row, numbers, rule, holds, holds)
    tl.store(wanted + row * z.rules + rule, holds, mask=rule < z.rules)


@triton.jit
def _ready_forces(t, z, s, row, numbers, rule, level, edge, idle):
    """Forces that start now; writes since when the waiting ones are due."""
    due = field(t, z, rule, DUE)
    position = tl.load(s.numbers + row * z.width + PLACE)
    half = rule < 0
    for span in range(0, z.spans):
        close = tl.load(t.spans + 4 * span + 1)
        state = tl.load(s.patterns + row * z.patterns + close).to(tl.int32)
        closes, back = in_state(t, z, close, state)
        halved = inside_of(z, s, row, span, span >= 0) & (back > 0) & ~closes
        half = half | (halved & (tl.load(t.waits + rule * z.spans + span, mask=rule < z.rules, other=0) != 0))
    since = tl.load(s.numbers + row * z.width + due, mask=due >= 0, other=-1)
    since = tl.where(level & ((since >= 0) | edge), tl.where(since >= 0, since, position), -1)
    settle = field(t, z, rule, SETTLE)
    settled = (settle < 0) | accepts(t, z, s, row, settle)
    settled = settled | (position >= since.to(tl.int64) + field(t, z, rule, WITHIN))
    ready = (since >= 0) & ~half & settled & idle & (due >= 0) & writes_of(t, z, row, rule)
    # A rule that could start and lost to an earlier one has had its edge, unless it may still settle.
    over = (rule == first_of(ready, rule)) | (ready & (settle < 0))
    tl.store(numbers + row * z.width + due, tl.where(over, -1, since), mask=(due >= 0) & idle)
    return ready


@triton.jit
def decide(
    t, z, s, r, uniforms, flags, numbers, d, RULES: tl.constexpr, WIDTH: tl.constexpr, CLASSES: tl.constexpr,
    FLAGS: tl.constexpr,
):  # fmt: skip
    """What the next token is to be; d: Decision."""
    row, rule = tl.program_id(0).to(tl.int64), tl.arange(0, RULES)
    begin(z, s, row, numbers, WIDTH)
    place = places(t, z, s, r, row, rule)
    level, edge = levels(t, z, s, r, row, rule, place), edges(t, z, s, r, row, rule, uniforms)
    kind, alive = field(t, z, rule, KIND), tl.load(r.alive + row) != 0
    running = tl.load(s.numbers + row * z.width + RUN)
    index = tl.load(s.numbers + row * z.width + RUN_INDEX)
    role = tl.load(t.sequences + 3 * running + 2, mask=running >= 0, other=-1)
    at_choice = alive & (role == PREFIX) & (index >= length_of(t, z, row, running))
    idle, emitting = alive & (running < 0), alive & (running >= 0) & ~at_choice

    ready = _ready_forces(t, z, s, row, numbers, rule, level, edge, idle)
    force = first_of(ready & (field(t, z, rule, DRAWN) < 0), rule)
    gate = tl.where(force >= 0, -1, first_of(idle & level & edge & (kind == GATE), rule))
    skip = blank_of(t, z, s, row, force)
    started = tl.where(force >= 0, field(t, z, force, SEQUENCE), field(t, z, gate, SEQUENCE))
    sequence, index = tl.where(emitting, running, started), tl.where(emitting, index, skip)
    writes = (force >= 0) | (gate >= 0) | emitting
    forced, ends, ended = emit(t, z, row, numbers, sequence, index, writes)
    ends = tl.where((force >= 0) & (forced < 0), BEFORE, ends)

    owner = tl.load(t.sequences + 3 * running + 1, mask=running >= 0, other=-1)
    chooses = tl.where(at_choice, owner, tl.where(forced < 0, gate, -1))
    acts = ((idle & (force < 0)) | at_choice) & level & edge
    acting = acts & (kind == BIAS) & (chooses < 0) & (forced < 0)
    sample = tl.where(forced < 0, first_of(acts & (kind == SAMPLE), rule), -1)
    passing = acting | (rule == sample) | (rule == gate)
    act(t, z, s, row, numbers, rule, passing | (rule == force), passing | (rule == ended))

    tl.store(d.forced + row, forced.to(tl.int64))
    tl.store(d.ends + row, ends.to(tl.uint8))
    tl.store(d.gate + row, chooses)
    tl.store(d.sample + row, sample)
    tl.store(d.acting + row * z.rules + rule, acting, mask=rule < z.rules)
    class_bias(t, z, row, rule, acting, d.scale, d.bias, CLASSES)
    flag, num_flags = tl.arange(0, FLAGS), z.spans + z.rules
    inside = tl.load(s.flags + row * num_flags + flag, mask=flag < z.spans, other=0)
    tl.store(flags + row * num_flags + flag, inside, mask=flag < z.spans)
    armed = row * num_flags + z.spans + rule
    old = tl.load(s.flags + armed, mask=rule < z.rules, other=0)
    tl.store(flags + armed, old | place.to(tl.uint8), mask=rule < z.rules)


@triton.jit
def step(
    t, z, s, r, tokens, uniforms, between, flags, numbers, d,
    PATTERNS: tl.constexpr, SPANS: tl.constexpr, RULES: tl.constexpr, WIDTH: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """One more committed token, then what the next one is to be; between: the state after the first of the two."""
    advance(t, z, s, tokens, 1, between.patterns, between.flags, between.numbers, PATTERNS, SPANS, RULES, WIDTH)
    # Lanes read below what others of their row wrote above.
    tl.debug_barrier()
    decide(t, z, between, r, uniforms, flags, numbers, d, RULES, WIDTH, CLASSES, SPANS)


@triton.jit
def _record_mode(t, z, row, numbers, gate, token):
    """Notes the mode that a token opens at a gate, and starts the ids that follow it."""
    place, mode, following = numbers + row * z.width, gate * 0 - 1, gate * 0 - 1
    found = gate * 0  # 2: by its id, 1: any other
    for choice in range(0, z.gate_modes):
        own = tl.load(t.gate_modes + 4 * choice) == gate
        wanted = tl.load(t.gate_modes + 4 * choice + 2)
        by = tl.where(own & (wanted == token), 2, tl.where(own & (wanted == -1), 1, 0))
        better = by > found
        mode = tl.where(better, tl.load(t.gate_modes + 4 * choice + 1), mode)
        following = tl.where(better, tl.load(t.gate_modes + 4 * choice + 3), following)
        found = tl.maximum(found, by)
    column = field(t, z, gate, MODE)
    tl.store(place + column, mode, mask=column >= 0)
    tl.store(place + RUN, following, mask=gate >= 0)
    tl.store(place + RUN_INDEX, gate * 0, mask=gate >= 0)


@triton.jit
def settle(
    t, z, s, r, d, drawn, uniforms, numbers, tokens, ends, replaced, RULES: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """What was drawn, or what takes its place."""
    row, rule = tl.program_id(0).to(tl.int64), tl.arange(0, RULES)
    begin(z, s, row, numbers, WIDTH)
    token, decided = tl.load(drawn + row), tl.load(d.ends + row)
    drew = (tl.load(r.alive + row) != 0) & (tl.load(d.forced + row) < 0) & (decided == 0)
    place = places(t, z, s, r, row, rule)
    ready = levels(t, z, s, r, row, rule, place) & edges(t, z, s, r, row, rule, uniforms)
    ready = ready & drew & (field(t, z, rule, KIND) == FORCE) & writes_of(t, z, row, rule)
    force = first_of(ready & next_accepts(t, z, s, row, field(t, z, rule, DRAWN), token), rule)
    gate = tl.where(drew & (force < 0), tl.load(d.gate + row), -1)
    _record_mode(t, z, row, numbers, gate, token)
    replaces = force >= 0
    skip = blank_of(t, z, s, row, force)
    forced, ending, ended = emit(t, z, row, numbers, field(t, z, force, SEQUENCE), skip, replaces)
    ending = tl.where(replaces & (forced < 0), BEFORE, ending)
    act(t, z, s, row, numbers, rule, rule == force, (rule == ended) | (rule == gate))
    tl.store(tokens + row, tl.where(forced >= 0, forced.to(tl.int64), token))
    tl.store(ends + row, tl.where(drew, ending.to(tl.uint8), decided))
    tl.store(replaced + row, replaces)
