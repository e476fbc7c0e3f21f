"""What a program's patterns and texts are as token ids: the part that needs the tokenizer."""

from dataclasses import dataclass

from adapt_kernels.modes import Modes
from adapt_kernels.program.automata import Automaton
from adapt_kernels.program.clauses import Ramp, RowInput
from adapt_kernels.program.patterns import Resolver
from adapt_kernels.program.rules import Bias, Force, Gate, Probe, Rule, Span, label_of
from adapt_kernels.program.signals import Signal, parse_signal


@dataclass(frozen=True)
class SpanTokens:
    """Automata of a span; open is None where no token opens it, breaks where nothing breaks it."""

    open: Automaton | None
    close: Automaton
    breaks: Automaton | None


@dataclass(frozen=True)
class RuleTokens:
    """Automata and ids of one rule; what its kind has not is None or empty."""

    after: Automaton | None = None
    drawn: Automaton | None = None
    settle: Automaton | None = None
    until: Automaton | None = None
    ids: tuple[int, ...] = ()  # of a bias
    sequence: tuple[int, ...] = ()  # of a force or a probe
    blanks: tuple[Automaton, ...] = ()  # the history ends with the text of the first n ids of `sequence`
    modes: Modes | None = None

    @property
    def choices(self) -> Modes:
        """Of a gate."""
        assert self.modes is not None
        return self.modes

    @property
    def largest_id(self) -> int:
        """-1 = none."""
        automata = [each for each in (self.after, self.drawn, self.settle, self.until) if each is not None]
        opened = [] if self.modes is None else [i for name in self.modes for i in self.modes.tokens(name) or ()]
        return max([*(each.largest_id for each in automata), *self.ids, *self.sequence, *opened], default=-1)


def resolve_span(name: str, span: Span, resolver: Resolver) -> SpanTokens:
    """Raises ValueError that names the span and the pattern."""
    label = f"spans[{name!r}]"
    return SpanTokens(
        open=None if span.open is None else resolver.automaton(span.open, f"{label} 'open'"),
        close=resolver.automaton(span.close, f"{label} 'close'", counted=True),
        breaks=None if span.breaks is None else resolver.automaton(span.breaks, f"{label} 'breaks'", counted=True),
    )


def resolve_rule(index: int, rule: Rule, resolver: Resolver) -> RuleTokens:
    """Raises ValueError that names the rule and the pattern."""
    label = label_of(index, rule)

    def automaton(pattern, key):
        return None if pattern is None else resolver.automaton(pattern, f"{label} {key!r}")

    own: dict = {}
    if isinstance(rule, Bias):
        own["ids"] = resolver.ids(rule.tokens, f"{label} 'bias'")
    elif isinstance(rule, Force) and not isinstance(rule.sequence, RowInput):
        own["sequence"] = resolver.sequence(rule.sequence, label)
        own["blanks"] = tuple(resolver.blank_starts(own["sequence"]))
        own["settle"] = automaton(rule.settle, "settle")
    elif isinstance(rule, Force):
        own["settle"] = automaton(rule.settle, "settle")
    elif isinstance(rule, Probe):
        own["sequence"] = resolver.sequence(rule.text, label)
        own["until"] = automaton(rule.until, "until")
    elif isinstance(rule, Gate):
        own["modes"] = _modes(rule, resolver, label)
    return RuleTokens(after=automaton(rule.when.after, "after"), drawn=automaton(rule.when.drawn, "drawn"), **own)


def _modes(rule: Gate, resolver: Resolver, label: str) -> Modes:
    try:
        return Modes({name: resolver.mode(name, given, label) for name, given in rule.modes.items()})
    except ValueError as error:
        raise ValueError(f"{label}: {str(error).removeprefix(f'{label}: ')}") from None


def resolve_signals(rules: tuple[Rule, ...], resolver: Resolver) -> dict[str, Signal]:
    """Every signal that a rule reads, by its name."""
    found = {}
    for index, rule in enumerate(rules):
        for name in registers_of(rule):
            signal = parse_signal(name, resolver, label_of(index, rule))
            if signal is not None:
                found[name] = signal
    return found


def registers_of(rule: Rule) -> list[str]:
    """Names of the registers that a rule reads."""
    ramp = [rule.chance.register.name] if isinstance(rule.chance, Ramp) else []
    return [register.name for register, _ in rule.when.conditions] + ramp
