"""What a half-step writes of a row: its numbers, the ids of running sequences, the biases of token classes."""

import triton
import triton.language as tl

from adapt_kernels.ops.steer.tables import ENDS_AFTER, RUNNING, RUNNING_INDEX, Action, Role, RuleField
from adapt_kernels.ops.steer.triton_guard import ENDED, PLACE, SINCE, accepts, field, number

AT_LAST = tl.constexpr(ENDS_AFTER)
RUN, RUN_INDEX = tl.constexpr(RUNNING), tl.constexpr(RUNNING_INDEX)
ADD, SCALE, BAN, ONLY = (tl.constexpr(int(action)) for action in Action)
OF_FORCE, PREFIX = tl.constexpr(int(Role.FORCE)), tl.constexpr(int(Role.PREFIX))
SEQUENCE = tl.constexpr(int(RuleField.SEQUENCE))
STOP = tl.constexpr(int(RuleField.STOP))
NONE = tl.constexpr(2**31 - 1)


@triton.jit
def begin(z, s, row, numbers, WIDTH: tl.constexpr):
    """Copies the row's numbers, all of them before any is overwritten."""
    column = tl.arange(0, WIDTH)
    old = tl.load(s.numbers + row * z.width + column, mask=column < z.width, other=0)
    tl.store(numbers + row * z.width + column, tl.where(column < z.width - 1, old, 0), mask=column < z.width)
    tl.debug_barrier()


@triton.jit
def act(t, z, s, row, numbers, rule, fires, ends):
    """Counts firings, and notes where rules ended."""
    column = SINCE + 3 * z.spans + rule
    fired = number(z, s, row, column, rule < z.rules) + fires.to(tl.int32)
    tl.store(numbers + row * z.width + column, fired, mask=rule < z.rules)
    column = field(t, z, rule, ENDED)
    after = tl.load(s.numbers + row * z.width + PLACE) + 1
    tl.store(numbers + row * z.width + column, after + rule * 0, mask=ends & (column >= 0))


@triton.jit
def first_of(holds, rule):
    """The first rule that holds, -1 = none."""
    first = tl.min(tl.where(holds, rule, NONE), 0)
    return tl.where(first == NONE, -1, first)


@triton.jit
def length_of(t, z, row, sequence):
    return tl.load(t.lengths + row * z.lengths_stride + sequence, mask=sequence >= 0, other=0)


@triton.jit
def writes_of(t, z, row, rule):
    """Rules whose sequence holds something, or that stop the row."""
    sequence = field(t, z, rule, SEQUENCE)
    return (sequence >= 0) & ((length_of(t, z, row, sequence) > 0) | (field(t, z, rule, STOP) > 0))


@triton.jit
def blank_of(t, z, s, row, force):
    """Leading white-space ids of the starting force that the history's text already ends with."""
    most = force * 0
    for blank in range(0, z.blanks):
        fits = tl.load(t.blanks + 3 * blank) == force
        fits = fits & accepts(t, z, s, row, tl.load(t.blanks + 3 * blank + 2))
        most = tl.maximum(most, tl.where(fits, tl.load(t.blanks + 3 * blank + 1), 0))
    return most


@triton.jit
def emit(t, z, row, numbers, sequence, index, writes):
    """(the next id of a sequence or -1, how the row ends, the rule that ended or -1); moves the row on."""
    length = length_of(t, z, row, sequence)
    emits = writes & (sequence >= 0) & (index < length)
    start = tl.load(t.sequences + 3 * sequence, mask=emits, other=0)
    owner = tl.load(t.sequences + 3 * sequence + 1, mask=emits, other=-1)
    role = tl.load(t.sequences + 3 * sequence + 2, mask=emits, other=-1)
    forced = tl.load(t.ids + row * z.ids_stride + start + index, mask=emits, other=-1)
    over = emits & (index + 1 >= length) & (role != PREFIX)
    place = numbers + row * z.width
    tl.store(place + RUN, tl.where(over, -1, sequence), mask=emits)
    tl.store(place + RUN_INDEX, tl.where(over, 0, index + 1), mask=emits)
    ends = tl.where(over & (role == OF_FORCE) & (field(t, z, owner, STOP) > 0), AT_LAST, 0)
    return forced, ends, tl.where(over, owner, -1)


@triton.jit
def class_bias(t, z, row, rule, acting, scale, bias, CLASSES: tl.constexpr):
    """Scales, then the sum of additions, in the order of the rules; then only and ban."""
    each = tl.arange(0, CLASSES)
    factor, shift, out = each * 0.0 + 1.0, each * 0.0, each < 0
    for own in range(0, z.biases):
        owner, action = tl.load(t.biases + 2 * own), tl.load(t.biases + 2 * own + 1)
        amount = tl.load(t.bias_amounts + own)
        acts = tl.max(((rule == owner) & acting).to(tl.int32), 0) > 0
        member = tl.load(t.bias_members + own * z.bias_classes + each, mask=each < z.bias_classes, other=0) != 0
        factor = tl.where(acts & member & (action == SCALE), factor * amount, factor)
        shift = tl.where(acts & member & (action == ADD), shift + amount, shift)
        out = out | (acts & tl.where(action == ONLY, ~member, member & (action == BAN)))
    place = row * z.bias_classes + each
    tl.store(scale + place, factor, mask=each < z.bias_classes)
    tl.store(bias + place, tl.where(out, float("-inf"), shift), mask=each < z.bias_classes)
