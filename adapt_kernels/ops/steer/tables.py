"""The tensors that steer reads and writes: a program's tables, the rows of a call, the state of each row."""

from enum import IntEnum, auto
from typing import NamedTuple

import torch

UNBOUNDED = 2**31 - 1


class Kind(IntEnum):
    """Kinds of rules, column RuleField.KIND."""

    GATE, FORCE, SAMPLE, PROBE, BIAS = range(5)


class Role(IntEnum):
    """What a sequence is of: a force, what all modes of a gate open with, or what follows its choice."""

    FORCE, PREFIX, SUFFIX = range(3)


class SpanFlag(IntEnum):
    """Last column of `SteerTables.spans`. RESTARTS: its close begins anew where it opens, so nothing before counts; no
    other span or rule may have that pattern."""

    PROMPT_COUNTS, RESTARTS = 1, 2


class Action(IntEnum):
    """What a bias does to its ids."""

    ADD, SCALE, BAN, ONLY = range(4)


class RuleField(IntEnum):
    """Columns of `SteerTables.rules`; -1 = none."""

    KIND = 0
    SPAN = auto()
    INSIDE = auto()  # 1: inside the span, 0: outside
    AFTER = auto()  # pattern
    DRAWN = auto()  # pattern
    SETTLE = auto()  # pattern
    WITHIN = auto()
    TIMES = auto()
    HOLD = auto()  # steps; UNBOUNDED with HOLD_SPAN
    HOLD_SPAN = auto()  # 1: until the span opens or closes
    CHANCE = auto()  # 0 none, 1 a number, 2 a ramp
    CHANCE_REGISTER = auto()
    NEEDS_MODE = auto()
    SEQUENCE = auto()
    STOP = auto()
    DUE = auto()  # column of the state: when a force became due
    HELD = auto()  # column of the state: steps that its edge stays true
    ENDED = auto()  # column of the state: position after the rule last acted
    MODE = auto()  # column of the state: the mode a gate chose
    STREAM = auto()  # the rule's number in the random stream


class Limit(IntEnum):
    """Second index of `SteerTables.limits`."""

    AT, COUNT, TOTAL, ENTRY, LEFT, EVERY = range(6)


class SteerTables(NamedTuple):
    """Programs as tensors: P patterns of at most S states, C classes, N spans, R rules, Q sequences, B biases.

    T is 1, or the number of rows where rows bring bounds or sequences of their own.
    """

    classes: torch.Tensor  # [V] int16: class of each id in `transitions`
    transitions: torch.Tensor  # [P, S, C] uint8
    accept: torch.Tensor  # [P + 1, S] bool; the last one never accepts: index -1 = no pattern
    back: torch.Tensor  # [P + 1, S] uint8
    spans: torch.Tensor  # [N, 4] int32: patterns open, close, breaks; sum of SpanFlag
    rules: torch.Tensor  # [R, len(RuleField)] int32
    limits: torch.Tensor  # [T, R, len(Limit), 2] int32: low <= value < high
    chances: torch.Tensor  # [R, 2] float64: the number, or both ends of the ramp
    waits: torch.Tensor  # [R, N] bool: spans whose half-matched close a force waits for
    conditions: torch.Tensor  # [K, 2] int32: rule, register
    condition_ranges: torch.Tensor  # [K, 2] float32
    mode_clauses: torch.Tensor  # [M, 3] int32: rule, column of the state, mode; any of a rule's suffices
    blanks: torch.Tensor  # [D, 3] int32: rule, n, pattern: the history ends with the first n ids of its sequence
    sequences: torch.Tensor  # [Q, 3] int32: first id in `ids`, rule, Role
    lengths: torch.Tensor  # [T, Q] int32
    ids: torch.Tensor  # [T, L] int32
    gate_modes: torch.Tensor  # [G, 4] int32: rule, mode, id (-1 = any other), suffix's sequence or -1
    biases: torch.Tensor  # [B, 2] int32: rule, Action
    bias_amounts: torch.Tensor  # [B] float32
    bias_members: torch.Tensor  # [B, E] bool: bias classes in its set
    bias_classes: torch.Tensor  # [V] uint8: bias class of each id, 0 = in no set


class SteerRows(NamedTuple):
    """The rows of a call, one per slot."""

    seeds: torch.Tensor  # [n] int64
    max_new_tokens: torch.Tensor  # [n] int32
    uses: torch.Tensor  # [n, R] bool: rules of the row's program
    alive: torch.Tensor  # [n] bool: the others keep their state and decide nothing


POSITION, RUNNING, RUNNING_INDEX, FIRST_SPAN = range(4)


class SteerState(NamedTuple):
    """State of each row after its last committed token; cloning it is a snapshot, putting it back a rewind."""

    patterns: torch.Tensor  # [n, P] uint8
    flags: torch.Tensor  # [n, N + R] uint8: inside each span; rules whose place was ever reached
    # [n, W] int32: POSITION (generated tokens), RUNNING sequence or -1, RUNNING_INDEX, then per span the tokens since
    # it opened or closed, the tokens of its finished visits, its visits; firings per rule; columns named in RuleField;
    # the last column is scratch.
    numbers: torch.Tensor
    registers: torch.Tensor  # [n, F] float32: row inputs, probe results, this step's signals, Mirostat's mu

    def clone(self) -> "SteerState":
        """A snapshot."""
        return SteerState(*(each.clone() for each in self))

    def select(self, index) -> "SteerState":
        """The rows at `index` [m] int64."""
        return SteerState(*(each.index_select(0, index) for each in self))


ENDS_BEFORE, ENDS_AFTER = 1, 2


class Decision(NamedTuple):
    """What steer says of each row's next token, E bias classes."""

    forced: torch.Tensor  # [n] int64: the id to write, -1 = draw
    ends: torch.Tensor  # [n] uint8: ENDS_BEFORE this step's token, ENDS_AFTER it, 0 = neither
    gate: torch.Tensor  # [n] int32: the gate rule that chooses here, -1 = none
    scale: torch.Tensor  # [n, E] float32: logits are multiplied by it ...
    bias: torch.Tensor  # [n, E] float32: ... then it is added; -inf = banned
    sample: torch.Tensor  # [n] int32: the sample rule that holds, -1 = the call's settings
    acting: torch.Tensor  # [n, R] bool: bias rules that hold


def state_columns(num_spans: int, num_rules: int) -> tuple[int, int, int, int, int]:
    """First columns of `SteerState.numbers` for tokens since, finished tokens, visits, firings, and what follows."""
    since = FIRST_SPAN
    return since, since + num_spans, since + 2 * num_spans, since + 3 * num_spans, since + 3 * num_spans + num_rules
