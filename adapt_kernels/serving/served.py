"""`Served`: the modes and programs of the model that an engine serves, from the files beside it or the environment."""

import json
from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path

from adapt_kernels import env
from adapt_kernels.modes import Modes
from adapt_kernels.program.mode_rules import gate_rules
from adapt_kernels.program.program import Program
from adapt_kernels.program.rules import Gate, Span
from adapt_kernels.program.steer_request import Thought, budget_program, thought_spans
from adapt_kernels.serving.refusals import check_served

_KEPT = 256  # parsed programs of requests


class Served:
    """modes: None where nobody tells any. programs: by name. eos_ids: the ids that end a turn. tokenizer: a function
    that loads it, called when a text has to be resolved. spans: as of `patch`."""

    def __init__(
        self, modes: Modes | None, programs: Mapping[str, Program], eos_ids=(), tokenizer=lambda: None, spans=None
    ):
        self.modes, self.programs, self.eos_ids = modes, dict(programs), frozenset(eos_ids)
        self._spans = spans or {}
        self._load_tokenizer = tokenizer
        for name, program in self.programs.items():
            try:
                check_served(program)
            except ValueError as error:
                raise ValueError(f"the program {name!r} of this server: {error}") from None
        self._parsed = lru_cache(_KEPT)(self._parse)

    @classmethod
    def of_folder(cls, folder, eos_ids=(), tokenizer=lambda: None) -> "Served":
        """The modes.json and program.json (called "default") beside a model.

        `$ADAPT_KERNELS_MODES` (a folder with modes.json) and `$ADAPT_KERNELS_PROGRAMS` (NAME=FOLDER,NAME=FOLDER; a
        folder has a program.json) come first. Raises ValueError or FileNotFoundError that names the file.
        """
        beside = Path(folder)
        modes_in = env.get("ADAPT_KERNELS_MODES")
        modes = None
        if modes_in is not None:
            modes = Modes.from_pretrained(modes_in)
        elif (beside / "modes.json").is_file():
            modes = Modes.from_pretrained(beside)
        programs = {"default": Program.from_pretrained(beside)} if (beside / "program.json").is_file() else {}
        for entry in filter(None, (env.get("ADAPT_KERNELS_PROGRAMS") or "").split(",")):
            name, equals, place = entry.partition("=")
            if not equals or not name:
                raise ValueError(f"ADAPT_KERNELS_PROGRAMS must be NAME=FOLDER,NAME=FOLDER; got {entry!r}")
            programs[name] = Program.from_pretrained(place)
        return cls(modes, programs, eos_ids, tokenizer)

    @cached_property
    def gate_modes(self) -> Modes:
        """The modes, where a request may choose among them. Raises ValueError."""
        if self.modes is None:
            raise ValueError(
                "this model has no modes: put a modes.json beside it (modes.save_pretrained(folder)) or name its folder"
                " in ADAPT_KERNELS_MODES"
            )
        capped = [name for name in self.modes if self.modes[name].max_new_tokens is not None]
        if capped:
            raise ValueError(
                f"mode {capped[0]!r} has max_new_tokens, a cap that this server does not keep: leave it out of"
                " modes.json and send thinking_budget"
            )
        return self.modes

    @cached_property
    def gate(self) -> Program:
        """The choice among the modes at the first token, as a program of one rule."""
        return gate_rules(self.gate_modes)

    def is_gate(self, program: Program) -> bool:
        """Whether the program is `gate`."""
        return program is self.__dict__.get("gate")

    @cached_property
    def thoughts(self) -> dict[str, Thought]:
        """The spans that `thinking_budget` caps; `<think>` ... `</think>` where the modes tell none."""
        told = {} if self.modes is None else thought_spans(self.modes, self._spans)
        if told:
            return told
        vocabulary = {} if self.tokenizer is None else self.tokenizer.get_vocab()
        opens, closes = (vocabulary.get(tag) for tag in ("<think>", "</think>"))
        if opens is None or closes is None:
            return {}
        return {"think": Thought(Span(opens, closes), (closes,), {})}

    @cached_property
    def budget(self) -> Program:
        """The rule of `thinking_budget`. Raises ValueError where nobody tells a thought's tags."""
        if not self.thoughts:
            raise ValueError(
                "nobody tells where a thought opens and closes: use a tokenizer with <think> and </think>, or modes"
                " with a closing or spans"
            )
        return budget_program(self.thoughts)

    @cached_property
    def tokenizer(self):
        """The model's tokenizer, or None."""
        return self._load_tokenizer()

    @cached_property
    def turns(self) -> frozenset[int]:
        """Ids that end a turn: what follows the last one in a prompt is the reply it begins."""
        told = None if self.modes is None else self.modes.prompt_tokens
        return self.eos_ids | frozenset(() if told is None else told.turns)

    def program(self, definition) -> Program:
        """A program that a request brought as data. Raises ValueError for what cannot be served."""
        return self._parsed(json.dumps(definition, sort_keys=True))

    def _parse(self, text: str) -> Program:
        definition = json.loads(text)
        try:
            program = Program.from_dict(definition)
        except ValueError:
            # Texts need the tokenizer, which is slow to load; ids do not.
            if self.tokenizer is None:
                raise
            program = Program.from_dict(definition, self.tokenizer)
        check_served(program)
        return program

    def programs_of(self, settings) -> tuple[Program, ...]:
        """What a row with these settings follows, in order: the gate, its program, its budget."""
        return tuple(
            each
            for each in (
                self.gate if settings.gated else None,
                settings.program,
                self.budget if settings.thinking_budget is not None else None,
            )
            if each is not None
        )


def reads_outer_mode(program: Program) -> bool:
    """Whether a rule asks for a mode that no gate of the program itself chooses."""
    own = {name for rule in program.rules if isinstance(rule, Gate) for name in rule.modes}
    return any(rule.when.mode is not None and rule.when.mode not in own for rule in program.rules)
