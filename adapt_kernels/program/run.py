"""`ProgramRun`: the programs of one call, step by step, over the rows that are still decoded."""

from collections.abc import Mapping, Sequence

import torch

from adapt_kernels.ops.steer import (
    ENDS_BEFORE,
    Decision,
    RuleField,
    SteerRows,
    SteerState,
    advance,
    decide,
    probe,
    settle,
    state_columns,
    step,
)
from adapt_kernels.program.program import Program
from adapt_kernels.program.row_inputs import checked_inputs, first_registers, in_order, listed
from adapt_kernels.program.rules import Gate, Probe, label_of
from adapt_kernels.program.settings import row_settings
from adapt_kernels.program.slots import Slots
from adapt_kernels.program.spans import Visit, spans_that_hold_stops, visits
from adapt_kernels.program.tables import compile_programs
from adapt_kernels.program.windows import Windows


class ProgramRun:
    """State of all rows of one call, [rows], and of the slots that are decoded now, [slots].

        run.begin(tails)
        while decoding:
            run.advance(tokens)                       # committed at the last step; not before the first one
            run.fill({"entropy": ...})                # every name in run.signals
            run.wanted_probes() -> run them, run.fill({register: ...})
            decision = run.decide()                   # forced ids, biases, gate, sample rule
            tokens = draw(logits, decision)
            run.wanted_probes(decision, tokens) -> run them, run.fill(...)
            tokens, ends, replaced = run.settle(tokens, surprise)

    A committed token waits until `decide` or somebody who reads `state`: a step that nobody looks into is one launch.

    programs: per row a Program, several in order of their rules, or None. seeds int64 [rows]; max_new_tokens: int or
    int [rows]. inputs: {name: one value per row} for every name in `Program.inputs`. outer_modes: names of modes that
    the caller decides itself and tells by `tell_modes`. unreported: programs that `fired`, `visits` and `never_armed`
    leave out. backend: that of the op `steer`. Raises ValueError, before anything runs, that names the rule or the
    argument.
    """

    def __init__(
        self,
        programs: Sequence,
        *,
        vocab_size: int,
        max_new_tokens,
        seeds: torch.Tensor,
        inputs: Mapping | None = None,
        outer_modes: Sequence[str] = (),
        min_new_tokens: int = 0,
        unreported: Sequence[Program] = (),
        backend: str = "auto",
    ):
        of_rows = [listed(program) for program in programs]
        distinct = in_order(of_rows)
        for program in distinct:
            program.check_call(min_new_tokens)
        inputs = checked_inputs(distinct, inputs or {}, len(of_rows))
        self.device, self.backend = seeds.device, backend
        self.compiled = compile_programs(distinct, vocab_size, outer_modes, inputs, self.device)
        self.signals = {name: signal for program in distinct for name, signal in program.signals.items()}
        self._owners = [owner for owner, program in enumerate(distinct) for _ in program.rules]
        self._of_rows = [[distinct.index(program) for program in own] for own in of_rows]
        hidden = {distinct.index(program) for program in unreported}
        self._reported = [[owner for owner in own if owner not in hidden] for own in self._of_rows]
        self._tables = self._all_tables = self.compiled.tables
        uses = [[owner in own for owner in self._owners] for own in self._of_rows]
        limits = torch.as_tensor(max_new_tokens, dtype=torch.int32, device=self.device).expand(len(of_rows))
        self._all_rows = SteerRows(
            seeds,
            limits.contiguous(),
            torch.tensor(uses, dtype=torch.bool, device=self.device).reshape(len(of_rows), len(self._owners)),
            torch.ones(len(of_rows), dtype=torch.bool, device=self.device),
        )
        self._windows = Windows(self.compiled.registers, len(of_rows), self.device)
        self._all_state = self.compiled.fresh_state(first_registers(self.compiled, self._of_rows, inputs))
        self._sleepers = spans_that_hold_stops(self.compiled, self._of_rows).to(self.device)
        self.slots = Slots(len(of_rows), self.device)
        self._rules_of_hidden = {
            program: torch.tensor([owner == distinct.index(program) for owner in self._owners], device=self.device)
            for program in unreported
        }
        self.rows, self.state = self._all_rows, self._all_state
        self._uses = self.rows.uses

    # The state before the token that waits: what no token changes may be written there.
    _behind: SteerState
    _waiting: torch.Tensor | None

    @property
    def state(self) -> SteerState:
        """[slots], after every committed token."""
        if self._waiting is not None:
            self.state = advance(self._tables, self._behind, self._waiting, backend=self.backend)
        return self._behind

    @state.setter
    def state(self, state: SteerState) -> None:
        self._behind, self._waiting = state, None

    def begin(self, tails: Sequence[Sequence[int]]) -> None:
        """Read the generation prompt of every row: what follows the prompt's last end of turn. Any lengths."""
        width = max(map(len, tails), default=0)
        padded = torch.tensor([[-1] * (width - len(tail)) + list(tail) for tail in tails], dtype=torch.int64)
        for tokens in padded.reshape(len(tails), width).to(self.device).unbind(1):
            self.state = advance(self._tables, self.state, tokens, generated=False, backend=self.backend)
        self._begun = self.state

    def enter(self, program: Program, inside: torch.Tensor, anew: torch.Tensor) -> None:
        """After `begin`: say which spans of a program each row is inside of, whatever its prompt shows, and which of
        them begin anew: their close is read from the first new token on. [spans, rows] bool each."""
        state, owner = self.state, self.compiled.programs.index(program)
        columns = [column for column, (own, _) in enumerate(self.compiled.spans) if own == owner]
        closes = self.compiled.tables.spans[columns, 1].long()
        flags, patterns = state.flags.clone(), state.patterns.clone()
        flags[:, columns] = inside.T.to(flags)
        patterns[:, closes] = patterns[:, closes].masked_fill(anew.T.to(self.device), 0)
        self.state = state._replace(flags=flags, patterns=patterns)

    def advance(self, tokens: torch.Tensor) -> None:
        """Commit the tokens [slots] of the last step."""
        self._behind, self._waiting = self.state, torch.where(self.rows.alive, tokens, -1)

    def fill(self, values: Mapping[str, torch.Tensor], where=None) -> None:
        """Write registers by name, [slots] each: signals of this step, or a probe's result for the slots `where`."""
        registers = self._behind.registers.clone()
        for name, value in values.items():
            columns = {window: column for (own, window), column in self.compiled.registers.items() if own == name}
            for window, column in columns.items():
                mean = self._windows.push(name, window, value, self.slots.index)
                registers[:, column] = mean if where is None else torch.where(where, mean, registers[:, column])
        self._behind = self._behind._replace(registers=registers)

    def wanted_probes(
        self, decision: Decision | None = None, tokens=None, uniforms=None
    ) -> list[tuple[int, torch.Tensor]]:
        """(rule, slots [slots] bool) of each probe that holds; with a decision those of what was drawn.

        Empty, at no cost, where no program has such a probe.
        """
        drawn = decision is not None
        probes = [
            i for i, r in enumerate(self.compiled.rules) if isinstance(r, Probe) and (r.when.drawn is not None) == drawn
        ]
        if not probes:
            return []
        if decision is not None:
            tokens = torch.where((decision.forced < 0) & (decision.ends == 0), tokens, -1)
        self.state, wanted = probe(self._tables, self.state, self.rows, uniforms, tokens, self.backend)
        return [(index, wanted[:, index]) for index in probes]

    def decide(self, uniforms=None) -> Decision:
        """The first half of a step; see `adapt_kernels.ops.steer.decide`."""
        state, tokens = self._behind, self._waiting
        if tokens is None:
            self.state, decision = decide(self._tables, state, self.rows, uniforms, self.backend)
        else:
            self.state, decision = step(self._tables, state, self.rows, tokens, uniforms, self.backend)
        return decision

    def settle(self, decision: Decision, tokens, surprise=None, uniforms=None):
        """(tokens, ends, replaced) [slots]: the second half. surprise: {rule: bits of the drawn token}, Mirostat's."""
        self.state, tokens, ends, replaced = settle(
            self._tables, self.state, self.rows, decision, tokens, uniforms, self.backend
        )
        if self.compiled.surprise and surprise is not None:
            self._adapt(decision, surprise, replaced)
        return tokens, ends, replaced

    def _adapt(self, decision: Decision, surprise, replaced) -> None:
        registers = self.state.registers.clone()
        for index, column in self.compiled.surprise.items():
            wanted, rate = self.compiled.mirostat(index)
            drew = (decision.sample == index) & ~replaced
            moved = registers[:, column] - rate * (surprise - wanted)
            registers[:, column] = torch.where(drew, moved, registers[:, column])
        self.state = self.state._replace(registers=registers)

    def settings(self, decision: Decision, call: Mapping[str, float], top1=None, zipf=None) -> dict[str, torch.Tensor]:
        """temperature, top_k, top_p and min_p [slots] under the sample rules; see `program.settings.row_settings`."""
        return row_settings(self.compiled, self.state, decision, call, top1, zipf)

    def gates(self) -> dict[int, Gate]:
        """The gate rules by their number in `Decision.gate`; `Program.rule_tokens` has their `Modes`."""
        return {index: rule for index, rule in enumerate(self.compiled.rules) if isinstance(rule, Gate)}

    def tell_modes(self, modes: torch.Tensor) -> None:
        """Note the modes [slots] that the caller's own gate chose, indices into outer_modes, -1 = none."""
        if self.compiled.outer_mode is not None:
            numbers = self._behind.numbers.clone()
            numbers[:, self.compiled.outer_mode] = modes.int()
            self._behind = self._behind._replace(numbers=numbers)

    def modes(self, gate: int) -> torch.Tensor:
        """int32 [slots]: the mode that a gate rule chose last, -1 = none yet."""
        return self.state.numbers[:, int(self.compiled.tables.rules[gate, RuleField.MODE])]

    def holds_stops(self) -> torch.Tensor:
        """[slots] bool: rows inside a span in which stop strings sleep."""
        inside = self.state.flags[:, : len(self.compiled.spans)].bool()
        return (inside & self.slots.take(self._sleepers)).any(1)

    def bind(self, max_new_tokens: int, seeds: torch.Tensor | None) -> None:
        """What was not known when the run was made: the tokens the call allows, and seeds [rows]; before `place`."""
        limits = torch.full_like(self._all_rows.max_new_tokens, max_new_tokens)
        self._all_rows = self._all_rows._replace(max_new_tokens=limits)
        if seeds is not None:
            self._all_rows = self._all_rows._replace(seeds=seeds)
        self.rows = self._all_rows

    def admit(self, alive: torch.Tensor, only: Program | None = None) -> None:
        """The slots [slots] bool that take part from now on: the others keep their state and decide nothing. only:
        one of the unreported programs, whose rules alone hold."""
        uses = self._uses if only is None else self._uses & self._rules_of_hidden[only]
        self.rows = self.rows._replace(alive=alive, uses=uses)

    def foresee(self, without: Program | None = None) -> Decision:
        """What `decide` would say if every firing draw came out so, with nothing changed; `without` one of the
        unreported programs."""
        least = torch.zeros(len(self.slots), len(self.compiled.rules), dtype=torch.float64, device=self.device)
        rows = self.rows
        if without is not None:
            rows = rows._replace(uses=rows.uses & ~self._rules_of_hidden[without])
        return decide(self._tables, self.state, rows, least)[1]

    def stops_next(self) -> torch.Tensor:
        """[slots] bool: rows that a rule ends before their next token; its firing is counted. Reads no new signal."""
        state, decision = decide(self._tables, self.state, self.rows)
        ended = decision.ends == ENDS_BEFORE
        self.state = SteerState(*(torch.where(ended[:, None], n, b) for n, b in zip(state, self.state, strict=True)))
        return ended

    def end(self, ended: torch.Tensor) -> None:
        """Rows [slots] bool that ended: they keep their state and decide nothing more."""
        self.rows = self.rows._replace(alive=self.rows.alive & ~ended)

    def place(self, slots: Slots | torch.Tensor) -> None:
        """From now on the slots hold these rows; int64 [slots] says it too."""
        self._store()
        self.slots = slots if isinstance(slots, Slots) else self.slots.holding(slots)
        self.state = self._all_state.select(self.slots.index)
        self.rows = SteerRows(*map(self.slots.take, self._all_rows))
        self._uses = self.rows.uses
        per_row = {
            n: self.slots.take(getattr(self._all_tables, n))
            for n in ("limits", "lengths", "ids")
            if len(getattr(self._all_tables, n)) > 1
        }
        self._tables = self._all_tables._replace(**per_row)

    def _store(self) -> None:
        self._all_state = SteerState(*(self.slots.put(a, s) for a, s in zip(self._all_state, self.state, strict=True)))
        self._all_rows = self._all_rows._replace(alive=self.slots.put(self._all_rows.alive, self.rows.alive))

    def snapshot(self):
        """What `rewind` takes: the state after the last committed token."""
        return self.state.clone(), self._windows.clone(), self.rows.alive

    def rewind(self, snapshot) -> None:
        """Back to a snapshot of the same slots."""
        state, windows, alive = snapshot
        self.state, self._windows = state.clone(), windows.clone()
        self.rows = self.rows._replace(alive=alive)

    def fired(self) -> torch.Tensor:
        """int32 [rows, most rules of a row]: steps at which each rule of the row's programs acted, padded with -1."""
        self._store()
        first = state_columns(len(self.compiled.spans), len(self.compiled.rules))[3]
        columns = [self._rules_of(row) for row in range(len(self._reported))]
        width = max(map(len, columns), default=0)
        table = torch.tensor(
            [each + [-1] * (width - len(each)) for each in columns], dtype=torch.int64, device=self.device
        )
        table = table.reshape(len(columns), width)
        counts = self._all_state.numbers[:, first:].gather(1, table.clamp(min=0)) if width else table
        return torch.where(table < 0, -1, counts).int()

    def visits(self, tokens, lengths, forced) -> list[list[Visit]]:
        """Per row the visits of its programs' spans; arguments as in `adapt_kernels.program.spans.visits`."""
        return visits(self.compiled, self._begun, self._reported, tokens, lengths, forced)

    def never_armed(self) -> list[list[str]]:
        """Per row the rules whose `in` and `mode` never held, such as a budget of a span that never opened."""
        self._store()
        armed = self._all_state.flags[:, len(self.compiled.spans) :].tolist()
        first, rules = self.compiled.first_rule, self.compiled.rules
        labels = [label_of(i - first[owner], rules[i]) for i, owner in enumerate(self._owners)]
        return [[labels[i] for i in self._rules_of(row) if not armed[row][i]] for row in range(len(self._reported))]

    @property
    def reports(self) -> bool:
        """Whether a row has a program that is reported."""
        return any(self._reported)

    def _rules_of(self, row: int) -> list[int]:
        return [i for own in self._reported[row] for i, owner in enumerate(self._owners) if owner == own]
