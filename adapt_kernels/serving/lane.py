"""`Lane`: the rows of an engine that follow the same programs, each at a place of its own that it keeps while it
moves between the engine's slots."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from adapt_kernels.ops.steer import (
    POSITION,
    Decision,
    RuleField,
    SteerRows,
    SteerState,
    SteerTables,
    advance,
    decide,
    settle,
    step,
)
from adapt_kernels.program.program import Program
from adapt_kernels.program.rules import Bias, Gate
from adapt_kernels.program.steer_request import BUDGET, delimiters, reply_tails
from adapt_kernels.program.tables import compile_programs, row_limits
from adapt_kernels.serving.settings import Settings

_FIRST_PLACES = 8
UNBOUNDED = float("inf")


@dataclass(frozen=True)
class Row:
    """A request as it enters an engine, or comes back after a preemption: then `generated` holds what it has said."""

    settings: Settings
    prompt: Sequence[int]
    generated: Sequence[int]
    seed: int
    temperature: float
    max_new_tokens: int


class Held(NamedTuple):
    """What a lane holds of its rows, one line per place."""

    state: SteerState
    decision: Decision
    seeds: torch.Tensor  # int64
    max_new_tokens: torch.Tensor  # int32
    limits: torch.Tensor  # as `SteerTables.limits`
    temperature: torch.Tensor  # float64
    mode_bias: torch.Tensor  # [places, M] float64
    fast_prob: torch.Tensor  # float64, NaN = none
    mode_token: torch.Tensor  # int64: of a named mode, -1 = draw


class Lane:
    """State of a row is that after its last committed token, with the decision about its next one:

        place = lane.admit(row)                          # reads the prompt's reply and all it has said
        state, decision = lane.catch_up(places, ...)     # what was said since
        state, decision = lane.ahead(...)                # what a draft says, nothing kept

    It is a function of the tokens alone, so a row that was preempted, or whose draft was rejected, is where it was.

    gates: {rule: its Modes}. gated: rule 0 is the choice among the served modes, which each row sets its own way.
    last: from so many tokens on nothing is asked of the rows any more.
    """

    def __init__(self, programs: Sequence[Program], served, vocab_size: int, device, backend: str = "auto"):
        names = () if served.modes is None else served.modes.names
        self._capped = any(program.inputs for program in programs)
        self.compiled = compile_programs(programs, vocab_size, names, {BUDGET: [0]} if self._capped else {}, device)
        self.served, self.device, self.backend = served, device, backend
        rules, self.gated = self.compiled.rules, served.is_gate(programs[0])
        found = {i: self.compiled.rule_tokens(i).modes for i, rule in enumerate(rules) if isinstance(rule, Gate)}
        self.gates = {i: modes for i, modes in found.items() if modes is not None}
        self.biases = any(isinstance(rule, Bias) for rule in rules)
        self.last = UNBOUNDED
        if self.gated and len(programs) == 1:
            modes = served.gate_modes
            self.last = len(modes.prefix) + 1 + max(map(len, modes.suffixes))
        self._mode_column = int(self.compiled.tables.rules[0, RuleField.MODE]) if self.gated else None
        self._delimiters = delimiters(programs)
        self._fresh = self._fresh_state(1)
        # Without spans and patterns every prompt begins alike.
        self._first = None if self.last == UNBOUNDED else self._decided(self._fresh, nobody=False)
        self.held, self._free = self._new(_FIRST_PLACES), list(range(_FIRST_PLACES))

    def _fresh_state(self, count: int) -> SteerState:
        return self.compiled.fresh_state(torch.zeros(count, 0))

    def _decided(self, state: SteerState, nobody: bool) -> tuple[SteerState, Decision]:
        count = len(state.numbers)
        seeds = torch.zeros(count, dtype=torch.int64, device=self.device)
        rows = self._rows(seeds, torch.ones_like(seeds, dtype=torch.int32), seeds.bool() | (not nobody))
        return decide(self._tables(self._limits(count)), state, rows, backend=self.backend)

    def _limits(self, count: int) -> torch.Tensor:
        return self.compiled.tables.limits.repeat(count, 1, 1, 1)

    def _new(self, count: int) -> Held:
        state = self._fresh_state(count)
        seeds = torch.zeros(count, dtype=torch.int64, device=self.device)
        number = torch.ones(count, dtype=torch.float64, device=self.device)
        return Held(
            state=state,
            decision=self._decided(state, nobody=True)[1],
            seeds=seeds,
            max_new_tokens=torch.ones_like(seeds, dtype=torch.int32),
            limits=self._limits(count),
            temperature=number.clone(),
            mode_bias=number.new_zeros(count, len(self.served.modes) if self.gated else 0),
            fast_prob=number * float("nan"),
            mode_token=seeds - 1,
        )

    def _tables(self, limits: torch.Tensor) -> SteerTables:
        return self.compiled.tables._replace(limits=limits) if self._capped else self.compiled.tables

    def _rows(self, seeds, max_new_tokens, alive) -> SteerRows:
        uses = torch.ones(len(seeds), len(self.compiled.rules), dtype=torch.bool, device=self.device)
        return SteerRows(seeds, max_new_tokens, uses, alive)

    def admit(self, row: Row) -> int:
        """The place of a row, its state after everything it holds. Copies from the host; reads nothing back."""
        place, here = self._place(row)
        state, decision = self._begun(here, row)
        moves = self._one(1).bool()
        for token in row.generated:
            state, decision = self.ahead(here, state, decision, self._one(token), moves)
        self._keep(here, state, decision)
        return place

    def foresee(self, row: Row) -> Decision:
        """What may be decided about the row's first token, if every firing draw came out so. The row is not kept."""
        place, here = self._place(row)
        least = torch.zeros(1, len(self.compiled.rules), dtype=torch.float64, device=self.device)
        decision = self._begun(here, row, least)[1]
        self.release(place)
        return decision

    def written(self, row: Row) -> list[bool]:
        """Of each token of `row.generated` whether a rule wrote it; reads from the device. The row is not kept."""
        place, here = self._place(row)
        state, decision = self._begun(here, row)
        found, moves = [], self._one(1).bool()
        for token in row.generated:
            found.append(int(decision.forced[0]) >= 0)
            state, decision = self.ahead(here, state, decision, self._one(token), moves)
        self.release(place)
        return found

    def release(self, place: int) -> None:
        """The row at this place has left."""
        self._free.append(place)

    @property
    def empty(self) -> bool:
        """Whether no row follows these programs now."""
        return len(self._free) == len(self.held.seeds)

    def _place(self, row: Row) -> tuple[int, torch.Tensor]:
        if not self._free:
            places = len(self.held.seeds)
            self.held = _joined(self.held, self._new(places))
            self._free += range(places, 2 * places)
        place, settings, held = self._free.pop(), row.settings, self.held
        held.seeds[place], held.max_new_tokens[place] = row.seed, row.max_new_tokens
        held.temperature[place] = row.temperature
        if self._capped:
            limits = row_limits(self.compiled.rules, {BUDGET: [settings.thinking_budget]})
            held.limits[place] = limits[0].to(self.device)
        if self.gated:
            self._choose(place, settings)
        return place, self._one(place)

    def _choose(self, place: int, settings: Settings) -> None:
        modes, held = self.served.gate_modes, self.held
        bias, token = list(settings.bias or (0.0,) * len(modes)), -1
        if settings.mode not in (None, "auto"):
            index = modes.index(settings.mode)
            token = -1 if modes.token_ids[index] is None else modes.token_ids[index]
            if token < 0:  # any other token has no id to force
                bias = [0.0 if each == index else -UNBOUNDED for each in range(len(modes))]
        held.mode_bias[place] = torch.tensor(bias, dtype=torch.float64, device=self.device)
        held.fast_prob[place] = float("nan") if settings.fast_prob is None else settings.fast_prob
        held.mode_token[place] = token

    def _one(self, value: int) -> torch.Tensor:
        return torch.tensor([value], dtype=torch.int64, device=self.device)

    def _begun(self, here, row: Row, uniforms=None) -> tuple[SteerState, Decision]:
        """After the prompt: what follows its last end of turn is of the reply."""
        if self._first is not None and uniforms is None:
            return self._first
        state, tables = self._fresh, self._tables(self.held.limits.index_select(0, here))
        prompt = torch.tensor([list(row.prompt)], dtype=torch.int64)
        for token in reply_tails(prompt, None, set(self.served.turns), self._delimiters)[0]:
            state = advance(tables, state, self._one(token), generated=False, backend=self.backend)
        return decide(tables, state, self._rows_of(here), uniforms, self.backend)

    def _rows_of(self, places) -> SteerRows:
        seeds = self.held.seeds.index_select(0, places)
        everyone = torch.ones_like(seeds, dtype=torch.bool)
        return self._rows(seeds, self.held.max_new_tokens.index_select(0, places), everyone)

    def _keep(self, places, state: SteerState, decision: Decision) -> None:
        for own, new in ((self.held.state, state), (self.held.decision, decision)):
            for kept, value in zip(own, new, strict=True):
                kept.index_copy_(0, places, value)

    def catch_up(self, places, generated, history: Callable, rounds: int) -> tuple[SteerState, Decision]:
        """State and decision of the rows at `places` [n] int64, unique, after `generated` [n] tokens, or as they were
        where that is fewer than they hold.

        history(round, position [n]): their tokens [n] int64 at that position. rounds: no row has said more since.
        """
        state = self.held.state.select(places)
        decision = Decision(*(each.index_select(0, places) for each in self.held.decision))
        for number in range(rounds):
            position = state.numbers[:, POSITION]
            tokens = history(number, position.long())
            state, decision = self.ahead(places, state, decision, tokens, position < generated)
        if rounds:
            self._keep(places, state, decision)
        return state, decision

    def ahead(self, places, state: SteerState, decision: Decision, tokens, moves) -> tuple[SteerState, Decision]:
        """After one more token [n] of the rows `moves` [n] bool; nothing is kept."""
        tables = self._tables(self.held.limits.index_select(0, places))
        rows = self._rows_of(places)._replace(alive=moves)
        state = settle(tables, state, rows, decision, torch.where(moves, tokens, 0), backend=self.backend)[0]
        if self.compiled.outer_mode is not None and self.gated:
            numbers = state.numbers.clone()
            numbers[:, self.compiled.outer_mode] = numbers[:, self._mode_column]
            state = state._replace(numbers=numbers)
        state, new = step(tables, state, rows, torch.where(moves, tokens, -1), backend=self.backend)
        old = decision
        return state, Decision(*(torch.where(_like(moves, n), n, o) for n, o in zip(new, old, strict=True)))


def _like(rows, tensor):
    return rows if tensor.ndim == 1 else rows[:, None]


def _joined(old, new):
    if torch.is_tensor(old):
        return torch.cat([old, new])
    return type(old)(*map(_joined, old, new))
