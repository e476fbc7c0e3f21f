"""The model behind the page: its modes, what it can be asked, and the lock that keeps its users apart."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import adapt_kernels as ak
from adapt_recipes import checkpoint_path, problems
from adapt_recipes.dial.thought import Tags, tag_openings, thought_tags
from adapt_recipes.evaluation.generate import encode
from adapt_recipes.models import default_length, load, load_modes, model_folder, require_vocabulary
from adapt_recipes.programs import load_program, thought_span
from adapt_recipes.tasks import words

DEFAULT = "rl"
MAX_PROMPT_CHARACTERS = 20_000
PLAIN_EXAMPLES = (
    "What is 7 + 5?",
    "Tom has 3 apples and buys 4 more. How many apples does he have?",
    "A train travels 60 miles in one hour. How far does it travel in 3 hours?",
)
# Presets with settings to begin with; those that a model's tokenizer cannot spell are not offered.
PROGRAMS = {
    "budget": "tokens=16 soft=0", "qwen3": "tokens=32", "ds4": "tokens=32 hard_tokens=16", "min_thinking": "tokens=8",
    "s1": "times=1", "nowait": "", "tip": "", "alphaone": "", "concisehint": "", "stop_bias": "by=2.0",
    "thinkbrake": "threshold=1.0", "mirostat": "surprise=3.0",
}  # fmt: skip


@dataclass
class Served:
    """A loaded model. `modes` is None until somebody has named them; `graded`: it answers the running-sum task, whose
    answers can be judged. points: the measured frontier, empty before. `lock` is held for a whole `generate`."""

    model: Any
    tokenizer: Any
    label: str
    examples: Sequence[str]
    most_new_tokens: int
    graded: bool = False
    modes: ak.Modes | None = None
    tags: Tags | None = None
    openings: Sequence[tuple[int, ...]] = ()
    points: Sequence[Any] = ()
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the modes, the dial's first; none while they are unknown."""
        return () if self.modes is None else self.modes.names

    @property
    def slow(self) -> str:
        """The mode that others are compared with."""
        return "slow" if "slow" in self.names else self.names[-1]

    def name_modes(self, modes: ak.Modes) -> None:
        """Patch the model with `modes`, in place of others it had; waits for a running answer."""
        told = modes.spans or any(modes[name].closing for name in modes.names)
        with self.lock:
            ak.unpatch(self.model)
            ak.patch(self.model, modes, spans={} if told else thought_span(self.tokenizer))
            self.modes, self.tags = modes, thought_tags(modes, self.tokenizer)
            self.openings, self.points = tag_openings(modes, self.tokenizer), ()

    def name_openings(self, fast: str, slow: str) -> None:
        """Modes by the texts that open them. Raises ValueError saying what a text lacks."""
        if not fast or not slow:
            raise ValueError("give the text that opens a fast answer and the text that opens a slow one")
        self.name_modes(ak.Modes.from_tokenizer(self.tokenizer, fast=fast, slow=slow))

    def inputs(self, prompt: str, new_tokens: int) -> Any:
        """The model's inputs for one prompt. Raises ValueError when the model cannot read or hold it."""
        if self.modes is None:
            raise ValueError("this model's modes are not known yet: name their openings first")
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError("the prompt is empty: write a question or choose an example")
        if len(prompt) > MAX_PROMPT_CHARACTERS:
            raise ValueError(f"the prompt has {len(prompt)} characters; at most {MAX_PROMPT_CHARACTERS} are taken")
        encoded = encode(self.tokenizer, [prompt])
        length, most = encoded["input_ids"].shape[1], getattr(self.model.config, "max_position_embeddings", None)
        if most is not None and length + new_tokens > most:
            raise ValueError(
                f"the prompt has {length} tokens and asks for up to {new_tokens} new ones, but {self.label} holds "
                f"{most} in all: shorten the prompt or lower the most new tokens"
            )
        require_vocabulary(self.tokenizer, [prompt], self.label)
        return encoded.to(self.model.device)

    def program(self, name: str | None, settings: str) -> ak.Program | None:
        """An offered preset with "name=value" settings; nothing else can be named, a file least of all."""
        if name is None:
            return None
        if name not in PROGRAMS:
            raise ValueError(f"no program {name!r} is offered; there are: {', '.join(PROGRAMS)}")
        try:
            return load_program(name, settings.split(), self.tokenizer)
        except (ValueError, TypeError) as error:
            raise ValueError(f"program {name!r} with the settings {settings!r}: {error}") from error

    def programs(self) -> dict[str, str]:
        """The offered presets that this model can run, with settings to begin with."""
        offered = {}
        for name, settings in PROGRAMS.items():
            try:
                self.program(name, settings)
            except ValueError:
                continue
            offered[name] = settings
        return offered


def choose(folder: Path | None, smollm2: bool, fast: str | None, slow: str | None) -> Served:
    """The model that a command line asks for. Raises ValueError when it asks for two."""
    if smollm2 and folder is not None:
        raise ValueError("give --model or --smollm2, not both")
    if folder is not None:
        return serve_folder(folder, fast, slow)
    if fast is not None or slow is not None:
        raise ValueError("--fast and --slow belong to --model")
    return serve_smollm2() if smollm2 else serve_default()


def serve_default() -> Served:
    """The checkpoint that comes with the package."""
    folder = checkpoint_path(DEFAULT)
    prompts = [problems(1, level, seed=3)[0].prompt for level in (1, 3, 5, 8)]
    return _served(folder, f"the shipped checkpoint {DEFAULT!r}", prompts, None, None, graded=True)


def serve_smollm2() -> Served:
    """SmolLM2-135M-Instruct with the shipped adapter that has learnt to choose."""
    kinds = len(words.KINDS)
    examples = [problems(kinds, i + 1, seed=3, family=words.IDLE_NAME)[i].prompt for i in range(kinds)]
    return _served(model_folder("smollm2-rl"), "SmolLM2-135M-Instruct", examples, None, None)


def serve_folder(folder: Path, fast: str | None = None, slow: str | None = None) -> Served:
    """A local model folder; without modes.json and openings its modes are still to be named."""
    return _served(folder, folder.resolve().name, PLAIN_EXAMPLES, fast, slow)


def _served(
    folder: Path, label: str, examples: Sequence[str], fast: str | None, slow: str | None, graded: bool = False
) -> Served:
    model, tokenizer = load(folder)
    served = Served(model, tokenizer, label, examples, default_length(folder), graded)
    if fast is not None or slow is not None or (folder / "modes.json").is_file():
        served.name_modes(load_modes(folder, tokenizer, fast, slow))
    return served
