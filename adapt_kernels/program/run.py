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
from adapt_kernels.program.row_inputs import checked_inputs, first_registers, listed
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
    the caller decides itself and tells by `tell_modes`. backend: that of the op `steer`. Raises ValueError, before
    anything runs, that names the rule or the argument.
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
        backend: str = "auto",
    ):
        of_rows = [listed(program) for program in programs]
        distinct: list[Program] = []
        for program in (each for own in of_rows for each in own):
            if program not in distinct:
                program.check_call(min_new_tokens)
                distinct.append(program)
        inputs = checked_inputs(distinct, inputs or {}, len(of_rows))
        self.device, self.backend = seeds.device, backend
        self.compiled = compile_programs(distinct, vocab_size, outer_modes, inputs, self.device)
        self.signals = {name: signal for program in distinct for name, signal in program.signals.items()}
        self._owners = [owner for owner, program in enumerate(distinct) for _ in program.rules]
        self._of_rows = [[distinct.index(program) for program in own] for own in of_rows]
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
        self.rows, self.state = self._all_rows, self._all_state

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
        state, tokens = self._undecided = self._behind, self._waiting
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

    def admit(self, alive: torch.Tensor) -> None:
        """The slots [slots] bool that take part from now on: the others keep their state and decide nothing."""
        self.rows = self.rows._replace(alive=alive)

    def withdraw(self, decision: Decision, where: torch.Tensor) -> Decision:
        """Undo what the last `decide` did in the slots `where` [slots] bool: somebody else writes there."""
        state, tokens = self._undecided
        before = state if tokens is None else advance(self._tables, state, tokens, backend=self.backend)
        keep = ~where[:, None]
        self.state = SteerState(*(torch.where(keep, n, b) for n, b in zip(self.state, before, strict=True)))
        return decision._replace(
            ends=decision.ends.masked_fill(where, 0),
            gate=decision.gate.masked_fill(where, -1),
            scale=decision.scale.masked_fill(~keep, 1.0),
            bias=decision.bias.masked_fill(~keep, 0.0),
            sample=decision.sample.masked_fill(where, -1),
            acting=decision.acting & keep,
        )

    def foresee(self) -> Decision:
        """What `decide` would say if every firing draw came out so, with nothing changed."""
        least = torch.zeros(len(self.slots), len(self.compiled.rules), dtype=torch.float64, device=self.device)
        return decide(self._tables, self.state, self.rows, least)[1]

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
        columns = [self._rules_of(row) for row in range(len(self._of_rows))]
        width = max(map(len, columns), default=0)
        table = torch.tensor(
            [each + [-1] * (width - len(each)) for each in columns], dtype=torch.int64, device=self.device
        )
        table = table.reshape(len(columns), width)
        counts = self._all_state.numbers[:, first:].gather(1, table.clamp(min=0)) if width else table
        return torch.where(table < 0, -1, counts).int()

    def visits(self, tokens, lengths, forced) -> list[list[Visit]]:
        """Per row the visits of its programs' spans; arguments as in `adapt_kernels.program.spans.visits`."""
        return visits(self.compiled, self._begun, self._of_rows, tokens, lengths, forced)

    def never_armed(self) -> list[list[str]]:
        """Per row the rules whose `in` and `mode` never held, such as a budget of a span that never opened."""
        self._store()
        armed = self._all_state.flags[:, len(self.compiled.spans) :].tolist()
        first, rules = self.compiled.first_rule, self.compiled.rules
        labels = [label_of(i - first[owner], rules[i]) for i, owner in enumerate(self._owners)]
        return [[labels[i] for i in self._rules_of(row) if not armed[row][i]] for row in range(len(self._of_rows))]

    def _rules_of(self, row: int) -> list[int]:
        return [i for own in self._of_rows[row] for i, owner in enumerate(self._owners) if owner == own]
