"""The rules of several programs as rows of numbers: which pattern, span, sequence, register and column each uses."""

from collections.abc import Sequence

from adapt_kernels.ops.steer import UNBOUNDED, Kind, Role, RuleField, SpanFlag, state_columns
from adapt_kernels.program.automata import Automaton
from adapt_kernels.program.clauses import Ramp, Register
from adapt_kernels.program.program import Program
from adapt_kernels.program.resolved import RuleTokens
from adapt_kernels.program.rules import Bias, Force, Gate, ModeSpan, Probe, Rule, Sample, label_of

_KINDS = {Gate: Kind.GATE, Force: Kind.FORCE, Sample: Kind.SAMPLE, Probe: Kind.PROBE, Bias: Kind.BIAS}


class RuleRows:
    """See `SteerTables` for the fields; `sequences` are (ids or RowInput, rule, Role)."""

    width = len(RuleField)

    def __init__(self, programs: Sequence[Program], outer_modes: tuple[str, ...]):
        self.rules: tuple[Rule, ...] = tuple(rule for program in programs for rule in program.rules)
        self.tokens: tuple[RuleTokens, ...] = tuple(own for program in programs for own in program.rule_tokens)
        self.spans = tuple((index, name) for index, program in enumerate(programs) for name in program.spans)
        self.first_rule = tuple(sum(len(p.rules) for p in programs[:index]) for index in range(len(programs)))
        self.following = state_columns(len(self.spans), len(self.rules))[-1]
        self.automata: list[Automaton] = []
        self._unshared: set[int] = set()
        self.registers: dict[tuple[str, int], int] = {}
        self.surprise: dict[int, int] = {}
        self.sequences: list[tuple] = []
        self.conditions: list[tuple] = []
        self.mode_clauses: list[tuple] = []
        self.blanks: list[tuple] = []
        self.gate_modes: list[tuple] = []
        self.defaults: list[int] = []  # of the state's columns after the firings
        self.outer_mode: int | None = None
        self._outer_modes = outer_modes
        self._owner = [index for index, program in enumerate(programs) for _ in program.rules]
        self._mode_columns = {i: self._column(-1) for i, rule in enumerate(self.rules) if isinstance(rule, Gate)}
        self.span_rows = [self._span(programs[index], name) for index, name in self.spans]
        self.fields = [self._row(index) for index in range(len(self.rules))]
        self.waits = [[self._waits(rule, place) for place in range(len(self.spans))] for rule in range(len(self.rules))]

    def _column(self, default: int) -> int:
        self.defaults.append(default)
        return self.following + len(self.defaults) - 1

    def _pattern(self, automaton: Automaton | None) -> int:
        if automaton is None:
            return -1
        same = (i for i, each in enumerate(self.automata) if each == automaton and i not in self._unshared)
        found = next(same, len(self.automata))
        self.automata += [automaton] * (found == len(self.automata))
        return found

    def _register(self, register: Register) -> int:
        return self.registers.setdefault((register.name, register.window), len(self.registers) + len(self.surprise))

    def _span(self, program: Program, name: str) -> tuple[int, int, int, int]:
        own, span = program.span_tokens[name], program.spans[name]
        flags = SpanFlag.PROMPT_COUNTS * span.prompt
        if isinstance(span, ModeSpan):
            flags += SpanFlag.RESTARTS
            self._unshared.add(len(self.automata))
            self.automata.append(own.close)
            close = len(self.automata) - 1
        else:
            close = self._pattern(own.close)
        return self._pattern(own.open), close, self._pattern(own.breaks), int(flags)

    def _waits(self, index: int, place: int) -> bool:
        rule, (owner, name) = self.rules[index], self.spans[place]
        when = rule.when
        if isinstance(rule, Force) and not rule.wait:
            return False
        return owner == self._owner[index] and (when.span is None or (when.inside and when.span == name))

    def _row(self, index: int) -> list[int]:
        rule, own = self.rules[index], self.tokens[index]
        when, row = rule.when, [-1] * self.width
        row[RuleField.KIND] = _KINDS[type(rule)]
        if when.span is not None:
            row[RuleField.SPAN] = self.spans.index((self._owner[index], when.span))
        row[RuleField.INSIDE] = int(when.inside)
        row[RuleField.AFTER], row[RuleField.DRAWN] = self._pattern(own.after), self._pattern(own.drawn)
        row[RuleField.TIMES] = UNBOUNDED if when.times is None else min(when.times, UNBOUNDED)
        row[RuleField.HOLD] = min(rule.hold, UNBOUNDED) if isinstance(rule.hold, int) else UNBOUNDED  # "span"
        row[RuleField.HOLD_SPAN] = int(rule.hold == "span")
        row[RuleField.CHANCE] = 2 if isinstance(rule.chance, Ramp) else int(rule.chance is not None)
        if isinstance(rule.chance, Ramp):
            row[RuleField.CHANCE_REGISTER] = self._register(rule.chance.register)
        row[RuleField.NEEDS_MODE] = int(when.mode is not None)
        row[RuleField.STREAM] = index - self.first_rule[self._owner[index]]
        if rule.hold != 1:
            row[RuleField.HELD] = self._column(0)
        if when.every is not None:
            row[RuleField.ENDED] = self._column(0)
        self._clauses(index, rule)
        self._kind(index, rule, own, row)
        return row

    def _clauses(self, index: int, rule: Rule) -> None:
        for register, wanted in rule.when.conditions:
            low = float("-inf") if wanted.low is None else wanted.low
            high = float("inf") if wanted.high is None else wanted.high
            self.conditions.append((index, self._register(register), low, high))
        if rule.when.mode is None:
            return
        modes = {i: list(self.tokens[i].choices) for i in self._mode_columns if self._owner[i] == self._owner[index]}
        gates = [i for i, names in modes.items() if rule.when.mode in names]
        for gate in gates:
            mode = modes[gate].index(rule.when.mode)
            self._mode_clause(index, self._mode_columns[gate], mode)
        if not gates and rule.when.mode in self._outer_modes:
            self.outer_mode = self._column(-1) if self.outer_mode is None else self.outer_mode
            self._mode_clause(index, self.outer_mode, self._outer_modes.index(rule.when.mode))
        elif not gates:
            own = [name for names in modes.values() for name in names]
            known = ", ".join(map(repr, dict.fromkeys([*own, *self._outer_modes]))) or "none"
            raise ValueError(f"{label_of(index, rule)}: no gate has the mode {rule.when.mode!r}; the modes are {known}")

    def _mode_clause(self, index: int, column: int, mode: int) -> None:
        self.mode_clauses += [(index, column, each) for each in (mode, *[-1] * self.rules[index].when.or_none)]

    def _kind(self, index: int, rule: Rule, own: RuleTokens, row: list[int]) -> None:
        if isinstance(rule, Force):
            row[RuleField.STOP] = int(rule.stop)
            row[RuleField.SETTLE], row[RuleField.WITHIN] = self._pattern(own.settle), min(rule.within, UNBOUNDED // 2)
            row[RuleField.SEQUENCE] = self._sequence(
                own.sequence if isinstance(rule.sequence, (str, list, tuple)) else rule.sequence, index, Role.FORCE
            )
            self.blanks += [(index, n, self._pattern(blank)) for n, blank in enumerate(own.blanks, 1)]
            if rule.when.drawn is None:
                row[RuleField.DUE] = self._column(-1)
        elif isinstance(rule, Gate):
            row[RuleField.MODE] = self._mode_columns[index]
            choices = own.choices
            if choices.prefix:
                row[RuleField.SEQUENCE] = self._sequence(choices.prefix, index, Role.PREFIX)
            for mode, (token, suffix) in enumerate(zip(choices.token_ids, choices.suffixes, strict=True)):
                following = self._sequence(suffix, index, Role.SUFFIX) if suffix else -1
                self.gate_modes.append((index, mode, -1 if token is None else token, following))
        elif isinstance(rule, Sample) and rule.surprise is not None:
            self.surprise[index] = len(self.registers) + len(self.surprise)
        elif isinstance(rule, Probe):
            self._register(Register(rule.into))
        elif not isinstance(rule, (Bias, Sample)):
            raise TypeError(f"{label_of(index, rule)}: no such kind of rule")

    def _sequence(self, ids, index: int, role: Role) -> int:
        self.sequences.append((ids, index, role))
        return len(self.sequences) - 1
