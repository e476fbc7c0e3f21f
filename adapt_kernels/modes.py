"""Modes of a reasoning model: which token ids open each mode, resolved once and checked loudly."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

from adapt_kernels.mode_tokens import mode_ids
from adapt_kernels.presets import PRESETS, THOUGHTS
from adapt_kernels.prompt_tokens import PromptTokens, Vocabulary

_FILE_NAME = "modes.json"
_MAX_MODES = 127  # mode indices are int8
TOKEN_FIELDS = ("ids", "closing", "close", "breaks")  # of a Mode: those that hold token ids, or text for them


@dataclass(frozen=True)
class Mode:
    """How one mode opens, and how it ends.

    ids: a token id, or a tuple of ids (the first ones shared with other modes and the one after them decide; later
        ids are forced), or None for "any other token". `Modes.from_tokenizer` also takes the text here.
    max_new_tokens: cap on the new tokens of a row in this mode, mode token included; None = no cap of its own.
    kv_tokens: KV slots per row set aside when the mode is drawn; None = learnt from recent lengths.
    closing: a token id or a tuple of ids that end the mode, such as those of "\\n</think>\\n\\n" (`from_tokenizer` also
        takes text). A row that has written max_new_tokens since the mode last opened, by the gate, the prompt (whose
        tokens count 0) or the model itself, gets the closing forced next and then decodes freely to the call's own end
        (EOS, max_length ...); one that closed by itself is left alone. None = the row ends at max_new_tokens.
    close: the ids of the closing's tag, which end the mode whatever stands around them; text as above. None = the last
        tag in the closing if it was resolved by `from_tokenizer`, else the whole closing. A closing without its close
        ends the mode as a whole, whoever writes it.
    breaks: ids any one of which ends the mode without its tag; text as above. None = the tokenizer's tags of tool calls
        (`<tool_call>` ...) under `from_tokenizer`, else none, as ().
    """

    ids: int | tuple[int, ...] | str | None
    max_new_tokens: int | None = None
    kv_tokens: int | None = None
    closing: int | tuple[int, ...] | str | None = None
    close: int | tuple[int, ...] | str | None = None
    breaks: int | tuple[int, ...] | str | None = None

    def __post_init__(self):
        for name in TOKEN_FIELDS:
            label = "a mode's ids" if name == "ids" else f"Mode.{name}"
            object.__setattr__(self, name, _as_ids(label, getattr(self, name), may_be_empty=name == "breaks"))
        for name in ("max_new_tokens", "kv_tokens"):
            value = getattr(self, name)
            if value is not None and (not _is_int(value) or value < 1):
                raise ValueError(f"Mode.{name} must be an integer >= 1 or None; got {value!r}")
        if self.closing is None:
            for name in ("close", "breaks"):
                if getattr(self, name) is not None:
                    raise ValueError(f"Mode.{name} says when no closing is needed any more: give closing too")
            return
        if self.close == self.closing:
            object.__setattr__(self, "close", None)  # equal modes compare equal
        if self.max_new_tokens is None:
            raise ValueError("Mode.closing is forced after max_new_tokens: give that too")
        if isinstance(self.ids, tuple):
            self._check_closing(self.ids, self.max_new_tokens)

    def _check_closing(self, ids: tuple[int, ...], limit: int) -> None:
        if limit < len(ids):
            raise ValueError(
                f"Mode.max_new_tokens={limit} would force the closing inside the mode's own"
                f" {len(ids)} ids: give at least {len(ids)}"
            )
        width = len(self.closing) if isinstance(self.closing, tuple) else 0
        if width and any(ids[i : i + width] == self.closing for i in range(len(ids))):
            raise ValueError(
                f"a mode's ids {ids} hold its closing {self.closing}, so max_new_tokens would never act: leave"
                " out closing to end rows there"
            )


class Modes:
    """An ordered set of named modes; a mode's index is its place, and mode 0 is the one a plain bias favours.

        Modes(fast=5, slow=6)        # a value: token id | tuple of ids | Mode(...) | None = any other token

    `token_ids` holds, per mode, the id on which the model decides (None: any other token), `prefix` the ids all modes
    open with, `suffixes` the ids that follow the decision. `spans` is where a preset's thought opens and closes (ids,
    as in a program) and `prompt_tokens` what a tokenizer told of the tokens before a reply, None without one; they take
    no part in comparisons. Raises ValueError when the modes cannot be told apart by one token after their common
    prefix.
    """

    def __init__(self, modes: Mapping | None = None, /, **named):
        given = {**(modes or {}), **named}
        self._modes = {name: value if isinstance(value, Mode) else Mode(value) for name, value in given.items()}
        _check_names(self._modes)
        listed = {name: mode.ids for name, mode in self._modes.items() if isinstance(mode.ids, tuple)}
        self.names: tuple[str, ...] = tuple(self._modes)
        self.prefix: tuple[int, ...] = _common_prefix(list(listed.values())) if len(listed) == len(given) else ()
        _check_distinct(listed, len(self.prefix), any_other=len(listed) < len(given))
        gate = len(self.prefix)
        self.token_ids = tuple(listed[name][gate] if name in listed else None for name in self.names)
        self.spans: dict[str, dict] = {}
        self.suffixes = tuple(listed.get(name, ())[gate + 1 :] for name in self.names)
        self.prompt_tokens: PromptTokens | None = None

    @classmethod
    def from_tokenizer(cls, tokenizer, modes: Mapping | None = None, /, **named) -> "Modes":
        """Modes whose values are texts, resolved by a Hugging Face tokenizer (ids, Mode and None pass unchanged).

        A tag such as `<think>`, and a text without white space, must be one token; a text of several words or tags
        (Qwen3's `<think>\\n\\n</think>\\n\\n`) is a multi-token mode. Raises ValueError that shows how the text was
        tokenised and the `add_special_tokens` call that mends it.
        """
        resolved: dict[str, Mode] = {}
        vocabulary = Vocabulary(tokenizer)
        for name, value in {**(modes or {}), **named}.items():
            mode = value if isinstance(value, Mode) else Mode(value)
            texts = {field: getattr(mode, field) for field in TOKEN_FIELDS}
            texts = {field: text for field, text in texts.items() if isinstance(text, str)}
            ids: dict[str, Any] = {f: mode_ids(tokenizer, name, text, f) for f, text in texts.items()}
            mode = replace(mode, **ids)
            resolved[name] = _with_ends(mode, vocabulary)
        made = cls(resolved)
        made.prompt_tokens = vocabulary.prompt_tokens(list(made._modes.values()))
        return made

    @classmethod
    def preset(cls, name: str, tokenizer) -> "Modes":
        """The modes of a published method, resolved from this tokenizer; see `adapt_kernels.presets.PRESETS`."""
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; there are {', '.join(sorted(PRESETS))}")
        made = cls.from_tokenizer(tokenizer, PRESETS[name])
        thought = Vocabulary(tokenizer).thought(THOUGHTS.get(name))
        made.spans = {} if thought is None else {"think": thought}
        return made

    def save_pretrained(self, directory) -> None:
        """Write `modes.json` into directory (made when missing)."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        content: dict[str, object] = {"modes": [{"name": name, **asdict(mode)} for name, mode in self._modes.items()]}
        if self.spans:
            content["spans"] = self.spans
        if self.prompt_tokens is not None:
            content["prompt_tokens"] = asdict(self.prompt_tokens)
        (Path(directory) / _FILE_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, directory) -> "Modes":
        """Read what `save_pretrained` wrote. Raises FileNotFoundError or ValueError that names the file."""
        path = Path(directory) / _FILE_NAME
        if not path.is_file():
            raise FileNotFoundError(f"no {_FILE_NAME} in {str(directory)!r}: write one with modes.save_pretrained(dir)")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            made = cls({entry.pop("name"): Mode(**entry) for entry in content["modes"]})
            made.spans = content.get("spans", {})
            if "prompt_tokens" in content:
                made.prompt_tokens = PromptTokens(**content["prompt_tokens"])
            return made
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} does not hold modes as save_pretrained writes them: {error!r}") from error

    def index(self, name: str) -> int:
        """The mode index of a name. Raises ValueError listing the names."""
        if name not in self._modes:
            raise ValueError(f"unknown mode {name!r}; the modes are {', '.join(map(repr, self.names))}")
        return self.names.index(name)

    def __getitem__(self, name: str) -> Mode:
        return self._modes[self.names[self.index(name)]]

    def tokens(self, name: str, field: str = "ids") -> tuple[int, ...] | None:
        """The ids in a field of a mode, one of `TOKEN_FIELDS`: here they are never text."""
        ids = getattr(self[name], field)
        assert ids is None or isinstance(ids, tuple)
        return ids

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self):
        return iter(self.names)

    def __eq__(self, other) -> bool:
        return isinstance(other, Modes) and list(self._modes.items()) == list(other._modes.items())

    def __hash__(self) -> int:
        return hash(tuple(self._modes.items()))

    def __repr__(self) -> str:
        return "Modes(" + ", ".join(f"{name}={_shown(mode)}" for name, mode in self._modes.items()) + ")"


def _check_names(modes: dict[str, Mode]) -> None:
    if len(modes) < 2:
        raise ValueError(f"Modes needs at least two modes, such as Modes(fast=5, slow=6); got {len(modes)}")
    if len(modes) > _MAX_MODES:
        raise ValueError(f"Modes takes at most {_MAX_MODES} modes; got {len(modes)}")
    for name, mode in modes.items():
        if not isinstance(name, str) or not name or name in ("auto", "balanced"):
            raise ValueError(f"a mode's name must be a text other than 'auto' and 'balanced'; got {name!r}")
        for text in (getattr(mode, field) for field in TOKEN_FIELDS):
            if isinstance(text, str):
                raise TypeError(
                    f"mode {name!r} holds the text {text!r}: resolve it with Modes.from_tokenizer(tokenizer, ...)"
                )
    others = [name for name, mode in modes.items() if mode.ids is None]
    if len(others) > 1:
        raise ValueError(f"only one mode can be 'any other token' (None); got {', '.join(others)}")


def _check_distinct(listed: dict[str, tuple[int, ...]], gate: int, any_other: bool) -> None:
    owner: dict[int, str] = {}
    names: dict[tuple[int, ...], str] = {}
    for name, ids in listed.items():
        if ids in names:
            raise ValueError(f"modes {names[ids]!r} and {name!r} have the same ids {ids}; give each its own token")
        names[ids] = name
    for name, ids in listed.items():
        if len(ids) <= gate:
            rest = ", ".join(repr(other) for other in listed if other != name)
            raise ValueError(f"mode {name!r} with ids {ids} is only the beginning of {rest}: no token decides for it")
        other = owner.setdefault(ids[gate], name)
        if other != name:
            why = (
                "an 'any other token' mode leaves no room for a common prefix"
                if any_other
                else "a third one differs there"
            )
            raise ValueError(
                f"modes {other!r} {listed[other]} and {name!r} {ids} both have token {ids[gate]} at position {gate},"
                f" and {why}: one token must tell all modes apart"
            )


def _common_prefix(sequences: list[tuple[int, ...]]) -> tuple[int, ...]:
    if len(sequences) < 2:
        return ()
    length = 0
    for column in zip(*sequences, strict=False):
        if len(set(column)) > 1:
            break
        length += 1
    # Equal or nested modes are refused by name later; a decision position must be left for that check.
    return sequences[0][: min(length, min(map(len, sequences)))]


def _with_ends(mode: Mode, vocabulary: Vocabulary) -> Mode:
    """The mode with what ends it beside its whole closing, where the caller left that to the tokenizer."""
    if mode.closing is None:
        return mode
    breaks = vocabulary.tool_calls or None if mode.breaks is None else mode.breaks
    return replace(mode, close=mode.close or vocabulary.last_tag(mode.closing), breaks=breaks)


def _as_ids(label: str, value, may_be_empty: bool = False):
    """A tuple of token ids, a text, or None. Raises TypeError or ValueError for anything else."""
    if value is None or isinstance(value, str):
        return value
    if _is_int(value):
        value = (value,)
    if not isinstance(value, Sequence):
        raise TypeError(f"{label} must be an int, a tuple of ints or None; got {value!r}")
    value = tuple(int(i) if _is_int(i) else i for i in value)
    if not (value or may_be_empty) or any(not _is_int(i) or i < 0 for i in value):
        raise ValueError(f"{label} must be token ids >= 0, at least one; got {value!r}")
    return value


def _is_int(value) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _shown(mode: Mode) -> str:
    ids = mode.ids[0] if isinstance(mode.ids, tuple) and len(mode.ids) == 1 else mode.ids
    limits = {k: v for k, v in asdict(mode).items() if k != "ids" and v is not None}
    return repr(ids) if not limits else f"Mode({ids!r}, " + ", ".join(f"{k}={v}" for k, v in limits.items()) + ")"
