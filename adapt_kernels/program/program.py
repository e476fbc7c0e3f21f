"""`Program`: spans and an ordered list of rules, from data and back."""

import copy
import json
from collections.abc import Mapping
from dataclasses import fields
from functools import cached_property
from pathlib import Path

from adapt_kernels.program import checks
from adapt_kernels.program.clauses import RowInput
from adapt_kernels.program.patterns import Resolver
from adapt_kernels.program.presets import preset
from adapt_kernels.program.resolved import registers_of, resolve_rule, resolve_signals, resolve_span
from adapt_kernels.program.rules import Bias, Force, Gate, Probe, Rule, Span, label_of, parse_rule, parse_span

_FILE_NAME = "program.json"


class Program:
    """Rules over the history of tokens that steer a generation; see `Program.from_dict`.

    spans {name: Span}, rules (in order), and what they need: `signals` {name: Signal}, `inputs` (names of numbers and
    sequences that rows bring), `probes` (registers that probes fill). Immutable; equal programs have equal data.
    """

    def __init__(self, definition: Mapping, resolver: Resolver):
        if not isinstance(definition, Mapping) or set(definition) - {"spans", "rules"} or "rules" not in definition:
            given = sorted(map(str, definition)) if isinstance(definition, Mapping) else definition
            raise ValueError(f"a program is an object with 'rules' and, optionally, 'spans'; got {given!r}")
        spans, rules = definition.get("spans", {}), definition["rules"]
        if not isinstance(spans, Mapping) or not isinstance(rules, (list, tuple)):
            raise ValueError("a program's 'spans' is an object of spans by name, and its 'rules' a list")
        self.spans: dict[str, Span] = {name: parse_span(name, span) for name, span in spans.items()}
        self.rules: tuple[Rule, ...] = tuple(parse_rule(index, rule) for index, rule in enumerate(rules))
        self._definition = _plain(definition, self.spans)
        self.span_tokens = {name: resolve_span(name, span, resolver) for name, span in self.spans.items()}
        self.rule_tokens = tuple(resolve_rule(index, rule, resolver) for index, rule in enumerate(self.rules))
        self.signals = resolve_signals(self.rules, resolver)
        checks.check_program(self.span_tokens, self.rules, self.rule_tokens, self.signals)
        self.probes = tuple(dict.fromkeys(rule.into for rule in self.rules if isinstance(rule, Probe)))
        self._resolved, self._missing_words = resolver.finish(), tuple(resolver.missing_words)

    @classmethod
    def from_dict(cls, d: Mapping, tokenizer=None) -> "Program":
        """A program from its JSON form.

            {"spans": {name: {"open": T, "close": T, "breaks": T, "stops": "hold", "prompt": false}}, "rules": [...]}

        A rule is one of gate, force, sample, probe and bias, with "when", "p" and "hold" beside it
        (`adapt_kernels.program.rules`); T is a token pattern (`adapt_kernels.program.patterns`). tokenizer: a Hugging
        Face tokenizer, needed for texts; with ids only, leading white space of a forced sequence is always written.
        Raises ValueError that names the rule, what was given and what is allowed.
        """
        return cls(d, Resolver(tokenizer))

    @classmethod
    def preset(cls, name: str, tokenizer, **settings) -> "Program":
        """The program of a published method; see `adapt_kernels.program.presets` for names, settings and sources.

        Raises ValueError that lists the names, or the settings of that name.
        """
        return cls.from_dict(preset(name, tokenizer, settings), tokenizer)

    def to_dict(self) -> dict:
        """The JSON form, texts kept; `from_dict` of it with the same tokenizer is an equal program."""
        return copy.deepcopy(self._definition)

    def save_pretrained(self, directory) -> None:
        """Write `program.json`, which holds the token ids too, into directory (made when missing)."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        content = {"program": self._definition, "tokens": self._resolved, "words_without_id": self._missing_words}
        (Path(directory) / _FILE_NAME).write_text(json.dumps(content) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, directory, tokenizer=None) -> "Program":
        """Read what `save_pretrained` wrote; with a tokenizer its texts are resolved anew.

        Raises FileNotFoundError or ValueError that names the file.
        """
        path = Path(directory) / _FILE_NAME
        if not path.is_file():
            raise FileNotFoundError(
                f"no {_FILE_NAME} in {str(directory)!r}: write one with program.save_pretrained(dir)"
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            resolver = Resolver(tokenizer, None if tokenizer is not None else content["tokens"])
            if tokenizer is None:
                resolver.missing_words += content["words_without_id"]
            return cls(content["program"], resolver)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} does not hold a program as save_pretrained writes it: {error!r}") from error

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names that rows must bring: registers that neither a probe nor a signal fills, bounds and sequences."""
        read = [name for rule in self.rules for name in registers_of(rule)]
        numbers = [name for name in read if name not in self.signals and name not in self.probes]
        return tuple(dict.fromkeys(numbers + [each.name for each in self.bounds] + list(self.sequences)))

    @property
    def bounds(self) -> tuple[RowInput, ...]:
        """Row inputs that are bounds of ranges or periods: an integer per row, None = the row does without the rule."""
        found = []
        for rule in self.rules:
            ranges = [bound for each in rule.when.ranges.values() for bound in (each.low, each.high)]
            found += [bound for bound in (*ranges, rule.when.every) if isinstance(bound, RowInput)]
        return tuple(dict.fromkeys(found))

    @property
    def sequences(self) -> tuple[str, ...]:
        """Row inputs that are forced sequences: ids per row."""
        forced = [rule.sequence for rule in self.rules if isinstance(rule, Force)]
        return tuple(dict.fromkeys(each.name for each in forced if isinstance(each, RowInput)))

    @property
    def modes(self) -> tuple[str, ...]:
        """Names of the modes of all gates."""
        return tuple(dict.fromkeys(name for rule in self.rules if isinstance(rule, Gate) for name in rule.modes))

    def report(self) -> dict:
        """What building found: {"sets": ids of every biased set by rule, "words_without_id": [...]}."""
        sets = {
            label_of(index, rule): len(own.ids)
            for index, (rule, own) in enumerate(zip(self.rules, self.rule_tokens, strict=True))
            if isinstance(rule, Bias)
        }
        patterns = {
            f"{label_of(index, rule)} {name!r}": len(automaton.classes)
            for index, (rule, own) in enumerate(zip(self.rules, self.rule_tokens, strict=True))
            for name in ("after", "drawn", "settle", "until")
            if (automaton := getattr(own, name)) is not None
        }
        return {"sets": sets | patterns, "words_without_id": list(self._missing_words)}

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises ValueError that names the first rule or span with an id outside the vocabulary."""
        owners = {
            label_of(i, rule): own.largest_id
            for i, (rule, own) in enumerate(zip(self.rules, self.rule_tokens, strict=True))
        }
        for name, span in self.span_tokens.items():
            parts = [each for each in (span.open, span.close, span.breaks) if each is not None]
            owners[f"spans[{name!r}]"] = max(each.largest_id for each in parts)
        owners |= {f"signal {name!r}": max(signal.ids, default=-1) for name, signal in self.signals.items()}
        for label, largest in owners.items():
            if largest >= vocab_size:
                raise ValueError(f"{label}: token id {largest} is outside the vocabulary of {vocab_size} tokens")

    def check_call(self, min_new_tokens: int = 0) -> None:
        """Raises ValueError for a rule that may end a row before min_new_tokens."""
        checks.check_call(self.rules, min_new_tokens)

    def __eq__(self, other) -> bool:
        same = isinstance(other, Program) and self._definition == other._definition
        return same and self.rule_tokens == other.rule_tokens and self.span_tokens == other.span_tokens

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(json.dumps(self._definition, sort_keys=True))

    def __repr__(self) -> str:
        return f"Program({json.dumps(self._definition)})"


def _plain(definition: Mapping, spans: Mapping[str, Span]) -> dict:
    """The definition as JSON data of its own; spans that were given as `Span` become objects."""
    given = definition.get("spans", {})
    written = {name: _fields(span) if given[name] is span else given[name] for name, span in spans.items()}
    try:
        plain = {"spans": written, "rules": definition["rules"]} if "spans" in definition else dict(definition)
        return json.loads(json.dumps(plain))
    except TypeError as error:
        raise ValueError(f"a program is JSON data: {error}") from None


def _fields(span: Span) -> dict:
    """The fields of a span that are not what they are by default."""
    return {each.name: getattr(span, each.name) for each in fields(span) if getattr(span, each.name) != each.default}
