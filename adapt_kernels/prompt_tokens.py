"""What a tokenizer tells of the tokens before a reply and at the end of a mode: tags, white space, turns."""

from dataclasses import dataclass, fields
from functools import cached_property
from itertools import takewhile

from adapt_kernels.mode_tokens import TAG
from adapt_kernels.presets import TOOL_CALLS

# White space as vocabularies spell it: as it is, as bytes in visible characters, or as SentencePiece does.
_SPACES = " \t\n\r\x0b\x0cĠĉĊċČč▁"
_SPACE_BYTES = ("<0x09>", "<0x0A>", "<0x0D>", "<0x20>")
_QUESTION = "Zq7"  # a text that no chat template writes by itself


@dataclass(frozen=True)
class PromptTokens:
    """Token ids that say how a prompt ends.

    tags: those ids of the modes that are tags, and their partners (`</think>`); a mode without one is an ordinary word.
    white_space: ids of nothing else. turns: those a chat template writes between a question and its reply, but for tags
    of modes. opener: the tag that a prompt opens where one mode closes it and any other token keeps it open, or None.
    endings: (white space, ids): those that end in white space with which a closing begins, by what they end in, after
    "." where they have more before it.
    """

    tags: tuple[int, ...] = ()
    white_space: tuple[int, ...] = ()
    turns: tuple[int, ...] = ()
    opener: int | None = None
    endings: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def __post_init__(self):
        for name in ("tags", "white_space", "turns"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "endings", tuple((text, tuple(ids)) for text, ids in self.endings))
        listed = [*self.tags, *self.white_space, *self.turns, *([] if self.opener is None else [self.opener])]
        listed += [token for _, ids in self.endings for token in ids]
        if not all(isinstance(i, int) for i in listed):
            raise TypeError(f"{', '.join(field.name for field in fields(self))} must hold token ids")


class Vocabulary:
    """A tokenizer's vocabulary, asked for tags; read when first asked."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    @cached_property
    def tool_calls(self) -> tuple[int, ...]:
        """Ids of the known tags that begin a tool call."""
        return tuple(self._ids[tag] for tag in TOOL_CALLS if tag in self._ids)

    def thought(self, tags: tuple[str, str] | None) -> dict | None:
        """The span between two tags, broken by tool calls, as ids; None where a tag is not one token."""
        if tags is None or not all(tag in self._ids for tag in tags):
            return None
        breaks = {"breaks": list(self.tool_calls)} if self.tool_calls else {}
        return {"open": self._ids[tags[0]], "close": self._ids[tags[1]], **breaks}

    def last_tag(self, ids) -> tuple[int] | None:
        """The last tag among the ids: one that was added to the vocabulary, or looks like `</think>`."""
        return next(((i,) for i in reversed(ids) if self._is_tag(i)), None)

    def prompt_tokens(self, modes) -> PromptTokens:
        """modes: `Mode`s whose texts are resolved."""
        own = [i for mode in modes for i in (mode.ids or ()) + (mode.closing or ()) + (mode.close or ())]
        tags = sorted({i for i in own if self._is_tag(i)})
        pairs = {*tags, *filter(None, map(self._partner, tags))}
        opener = None
        if any(mode.ids is None for mode in modes):
            closers = [i for i in tags if self._pieces[i].startswith(("</", "[/"))]
            opener = next(filter(None, map(self._partner, closers)), None)
        turns = tuple(i for i in self._after_a_question() if i in self._added and i not in pairs)
        endings = self._endings([mode.closing for mode in modes if mode.closing])
        return PromptTokens(tuple(sorted(pairs)), self._white_space, turns, opener, endings)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return self._tokenizer.get_vocab()

    @cached_property
    def _pieces(self) -> dict[int, str]:
        return {i: piece for piece, i in self._ids.items()}

    @cached_property
    def _added(self) -> set[int]:
        return set(self._tokenizer.get_added_vocab().values())

    @cached_property
    def _white_space(self) -> tuple[int, ...]:
        spelt = [i for piece, i in self._ids.items() if not piece.strip(_SPACES) or piece in _SPACE_BYTES]
        # Some of these characters are letters where a vocabulary does not spell bytes.
        return tuple(sorted(i for i in spelt if not self._tokenizer.decode([i]).strip()))

    def _endings(self, closings) -> tuple[tuple[str, tuple[int, ...]], ...]:
        blanks = [i for ids in closings for i in takewhile(self._white_space.__contains__, ids)]
        wanted = {character for i in blanks for character in self._tokenizer.decode([i])}
        found: dict[str, list[int]] = {}
        for piece, token in self._ids.items() if wanted else ():
            if piece[-1:] in _SPACES or piece in _SPACE_BYTES:
                text = self._tokenizer.decode([token])
                rest = text.rstrip()
                if text[-1:] in wanted and rest != text:
                    found.setdefault("." * bool(rest) + text[len(rest) :], []).append(token)
        return tuple((text, tuple(sorted(ids))) for text, ids in sorted(found.items()))

    def _is_tag(self, token_id: int) -> bool:
        piece = self._pieces.get(token_id, "")
        return (token_id in self._added and token_id not in self._white_space) or bool(TAG.fullmatch(piece))

    def _partner(self, tag: int) -> int | None:
        """The id of `</think>` for that of `<think>`, and the other way round."""
        piece = self._pieces[tag]
        other = piece[0] + piece[2:] if piece[1:2] == "/" else f"{piece[0]}/{piece[1:]}"
        return self._ids.get(other)

    def _after_a_question(self) -> list[int]:
        """Ids of what the chat template writes after a user's last word, if there is a template for that."""
        if not getattr(self._tokenizer, "chat_template", None):
            return []
        question = [{"role": "user", "content": _QUESTION}]
        try:
            text = self._tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
        except Exception:  # a template may want other roles, tools or a library that is not here
            return []
        return self._tokenizer.encode(text.rpartition(_QUESTION)[2], add_special_tokens=False)
