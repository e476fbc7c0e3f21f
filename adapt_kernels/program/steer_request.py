"""What one `generate` call asks of its programs and of `thinking_budget`: checked, then spread over the rows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

import torch

from adapt_kernels.modes import Modes
from adapt_kernels.program.patterns import Resolver
from adapt_kernels.program.program import Program
from adapt_kernels.program.row_inputs import listed
from adapt_kernels.program.row_values import spread_list
from adapt_kernels.program.rules import Span, parse_span
from adapt_kernels.prompt_spans import openings

BUDGET = "thinking_budget"
STEER_ARGUMENTS = ("program", BUDGET, "program_inputs")


class Thought(NamedTuple):
    """A span that `thinking_budget` caps, the ids that it forces then, without leading white space that the text ends
    with already, and the bytes of the ids that tell that (see `PromptTokens.endings`)."""

    span: Span
    closing: tuple[int, ...]
    endings: Mapping[int, bytes]


class RowPrograms(NamedTuple):
    """Per row its programs, in order, and what they read: {name: one value per row}."""

    programs: list[list[Program]]
    inputs: dict[str, list]

    def delimiters(self) -> set[int]:
        """Ids with which spans of any row open, close or break."""
        return delimiters(program for own in self.programs for program in own)


@dataclass(frozen=True)
class SteerRequest:
    """The arguments of one call; see `ModeGenerate.generate`."""

    program: object = None
    thinking_budget: object = None
    program_inputs: Mapping | None = None

    def __post_init__(self):
        if self.program_inputs is not None and not isinstance(self.program_inputs, Mapping):
            raise TypeError(f"program_inputs must be {{name: one value per row}}; got {self.program_inputs!r}")

    def given_arguments(self) -> list[str]:
        """Names of the arguments that were given."""
        return [n for n in STEER_ARGUMENTS if getattr(self, n) is not None]

    def spread(self, batch: int, samples: int, thoughts: Mapping[str, Thought]) -> RowPrograms | None:
        """Programs of the rows, None where no row has any. Raises ValueError or TypeError that names the argument.

        thoughts: spans of `thought_spans`.
        """
        rows = batch * samples
        programs = [listed(each) for each in spread_list("program", self._programs(), batch, samples)]
        budgets = spread_list(BUDGET, self._budgets(), batch, samples)
        inputs = {
            name: list(spread_list(f"program_inputs[{name!r}]", _values(name, value), batch, samples))
            for name, value in (self.program_inputs or {}).items()
        }
        if any(each is not None for each in budgets):
            capped = budget_program(thoughts)
            if BUDGET in inputs:
                raise ValueError(f"program_inputs[{BUDGET!r}]: thinking_budget brings this input itself")
            inputs[BUDGET] = list(budgets)
            programs = [own + ([] if n is None else [capped]) for own, n in zip(programs, budgets, strict=True)]
        if not any(programs):
            if inputs:
                raise ValueError(f"program_inputs: no program reads {next(iter(inputs))!r}; give program= too")
            return None
        assert len(programs) == rows
        return RowPrograms(programs, inputs)

    def _programs(self):
        if self.program is None or isinstance(self.program, Program):
            return self.program
        if not isinstance(self.program, (list, tuple)):
            raise TypeError(
                f"program must be an adapt_kernels.Program, or a list with one (or None) per row; got {self.program!r}"
            )
        return self.program

    def _budgets(self):
        value: Any = self.thinking_budget
        value = value.tolist() if hasattr(value, "tolist") else value
        several = isinstance(value, (list, tuple))
        for each in value if several else [value]:
            if each is not None and (isinstance(each, bool) or not isinstance(each, Integral)):
                raise TypeError(f"thinking_budget must be a number of tokens, or one (or None) per row; got {each!r}")
            if each is not None and each < 0:
                raise ValueError(f"thinking_budget must be >= 0; got {each}")
        return value


def thought_spans(modes: Modes, spans: Mapping[str, Span]) -> dict[str, Thought]:
    """The spans that `thinking_budget` caps: "think" of `spans`; else those of the modes with a closing; else the one
    that the modes' preset or file tells. Empty where nobody tells any.

    A mode's span opens with its tag, or its ids, and closes with the tag of its closing.
    """
    closings = [ids for name in modes if (ids := modes.tokens(name, "closing")) is not None]
    told = () if modes.prompt_tokens is None else modes.prompt_tokens.endings
    endings = {token: text.encode() for text, ids in told for token in ids}
    if "think" in spans:
        return {"think": _thought(spans["think"], closings, endings)}
    opened, found = openings(modes), {}
    for name in modes:
        ids, closing = opened[name] or modes.tokens(name), modes.tokens(name, "closing")
        if closing is not None and ids is not None:
            close, breaks = modes.tokens(name, "close") or closing, list(modes.tokens(name, "breaks") or ()) or None
            found[name] = Thought(Span(_pattern(ids), _pattern(close), breaks), closing, endings)
    if not found and "think" in modes.spans:
        return {"think": _thought(parse_span("think", modes.spans["think"]), closings, endings)}
    return {"think": next(iter(found.values()))} if len(found) == 1 else found


def _thought(span: Span, closings: Sequence[tuple[int, ...]], endings: Mapping[int, bytes]) -> Thought:
    """A mode's closing that holds the span's close, else that close itself."""
    built = Program.from_dict({"spans": {"think": span}, "rules": []})
    close = built.span_tokens["think"].close
    ids = next((ids for ids in closings if close.completes(ids)), None)
    return Thought(span, ids or first_ids(span.close), endings)


def first_ids(pattern) -> tuple[int, ...]:
    """The ids of a pattern's first alternative."""
    if isinstance(pattern, Mapping):
        return tuple(pattern["seq"][0])
    if isinstance(pattern, (list, tuple)):
        return first_ids(pattern[0])
    return (int(pattern),)


def budget_program(thoughts: Mapping[str, Thought]) -> Program:
    """The rule behind `thinking_budget`: a cap on each thought, read from the row input of that name."""
    if not thoughts:
        raise ValueError(
            "thinking_budget needs to know where a thought opens and closes, and neither the modes nor their preset"
            ' tell it: patch(model, modes, spans={"think": adapt_kernels.Span(open=..., close=...)}), or give the mode'
            " a closing"
        )
    rules = [
        {"force": list(thought.closing), "when": {"in": name, "count": [{"input": BUDGET}, None]}}
        for name, thought in thoughts.items()
    ]
    endings = {token: text for thought in thoughts.values() for token, text in thought.endings.items()}
    definition = {"spans": {name: each.span for name, each in thoughts.items()}, "rules": rules}
    return Program(definition, Resolver(endings=endings))


def reply_tails(input_ids: torch.Tensor, attention_mask, turns: set[int], delimiters: set[int]) -> list[list[int]]:
    """Per prompt [batch, T] the ids of the reply that it begins: what follows the last of `turns` (ids that end a
    turn, such as EOS), else all of it; tokens under a zero of the mask do not count. Reads the prompts.

    delimiters: ids of spans, which end no turn whoever says so.
    """
    ids = input_ids.cpu()
    if torch.is_tensor(attention_mask) and attention_mask.shape == ids.shape:
        ids = ids.where(attention_mask.cpu().bool(), -1)
    ends, found = turns - delimiters, []
    for row in ids.tolist():
        row = [token for token in row if token >= 0]
        # A BOS or padding may have the id of an EOS: it ends no turn.
        begin = next((i for i, token in enumerate(row) if token not in ends), 0)
        found.append(row[next((i for i in range(len(row), begin, -1) if row[i - 1] in ends), begin) :])
    return found


def delimiters(programs: Iterable[Program]) -> set[int]:
    """Ids with which spans of the programs open, close or break."""
    spans = [span for program in programs for span in program.span_tokens.values()]
    automata = [each for span in spans for each in (span.open, span.close, span.breaks) if each is not None]
    return {token for each in automata for token in each.classes}


def _pattern(ids: tuple[int, ...]):
    return ids[0] if len(ids) == 1 else {"seq": [list(ids)]}


def _values(name: str, value):
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"program_inputs[{name!r}] must have one value per row or per prompt; got {value!r}")
    return value
