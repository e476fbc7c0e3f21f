"""Token patterns of programs: what they are as data, and the automata and id sets they become.

5                          the id                        "</think>"      the text's one id
[5, "</think>"]            any of these patterns         {"seq": [[5, 6], ["a"]]}   the history ends with one of them
{"word": ["wait"]}         ids that spell the word, any case, after dropped leading spaces and tabs
{"ends": "\\n\\n"}           ids whose bytes end so        {"text": "</think>"}   bytes completed by the last token
"""

import json
from collections.abc import Mapping, Sequence
from numbers import Integral

from adapt_kernels.mode_tokens import mode_ids
from adapt_kernels.program import automata
from adapt_kernels.program.automata import Automaton
from adapt_kernels.program.vocabulary import Vocabulary

_FORMS = ("seq", "word", "ends", "text")


class Resolver:
    """Turns patterns and texts into automata and ids, each once.

    tokenizer: None where every pattern is ids. known: what `resolved` gave before; it stands in for the tokenizer.
    endings: without a tokenizer, the bytes of those ids that end in white space with which a sequence may begin.
    """

    def __init__(self, tokenizer=None, known: Mapping | None = None, endings: Mapping[int, bytes] | None = None):
        self._endings = endings or {}
        self._vocabulary = None if tokenizer is None else Vocabulary(tokenizer)
        self._known = dict(known or {})
        self.resolved: dict[str, object] = {}
        self.missing_words: list[str] = []

    @property
    def spells(self) -> bool:
        """Whether the bytes of tokens are known."""
        return self._vocabulary is not None or "spells" in self._known

    def ids(self, pattern, label: str) -> tuple[int, ...]:
        """The sorted ids of a pattern that is a set of ids. Raises ValueError for one that needs the history."""
        return tuple(self._once(["ids", pattern], lambda: self._ids(pattern, label)))

    def automaton(self, pattern, label: str, counted: bool = False) -> Automaton:
        """The automaton of a pattern; `counted` as in `automata.text`."""
        found = self._once(["automaton", pattern, counted], lambda: _packed(self._automaton(pattern, label, counted)))
        return _unpacked(found)

    def sequence(self, given, label: str) -> tuple[int, ...]:
        """The ids of a text, or of a list of ids and texts one after the other."""
        return tuple(self._once(["sequence", given], lambda: self._sequence(given, label)))

    def mode(self, name: str, given, label: str) -> tuple[int, ...] | None:
        """The ids that open a gate's mode: an id, a text, or one sequence; None = any other token."""
        return None if given is None else tuple(self._once(["mode", given], lambda: self._mode(name, given, label)))

    def blank_starts(self, ids: tuple[int, ...]) -> list[Automaton]:
        """For n = 1, 2, ... leading white-space ids of a sequence: the history's text ends with those n.

        Empty where the bytes are unknown, and for a sequence of white space only: nothing would be left of it.
        """
        packed = self._once(["blank", list(ids)], lambda: [_packed(each) for each in self._blank_starts(ids)])
        return [_unpacked(each) for each in packed]

    def finish(self) -> dict[str, object]:
        """All that was resolved, as JSON data that `known` takes."""
        return self.resolved | ({"spells": True} if self.spells else {})

    def _once(self, key, compute):
        key = json.dumps(key, sort_keys=True)
        if key not in self.resolved:
            self.resolved[key] = self._known[key] if key in self._known else compute()
        return self.resolved[key]

    def _needs(self, label: str, what: str) -> Vocabulary:
        if self._vocabulary is None:
            raise ValueError(f"{label}: {what} needs the tokenizer: pass tokenizer=, or write ids")
        return self._vocabulary

    def _id(self, given, label: str) -> int:
        if isinstance(given, str):
            return self._needs(label, f"the text {given!r}").single_id(given, label)
        if isinstance(given, bool) or not isinstance(given, Integral) or given < 0:
            raise ValueError(f"{label}: a token must be an id >= 0 or a text; got {given!r}")
        return int(given)

    def _sequence(self, given, label: str) -> list[int]:
        if isinstance(given, str):
            return list(self._needs(label, f"the text {given!r}").encode(given, label))
        if not _is_list(given):
            raise ValueError(f"{label}: a sequence is a text, or a list of ids and texts; got {given!r}")
        return [
            token
            for each in given
            for token in (self._sequence(each, label) if isinstance(each, str) else [self._id(each, label)])
        ]

    def _mode(self, name: str, given, label: str) -> list[int]:
        if isinstance(given, str):
            tokenizer = self._needs(label, f"the text {given!r}").tokenizer
            try:
                return list(mode_ids(tokenizer, name, given))
            except ValueError as error:
                raise ValueError(f"{label}: {error}") from None
        if isinstance(given, Mapping):
            parts, form, argument = _parts(given, label)
            lists = self._seq(argument, label) if form == "seq" else []
            if len(lists) == 1:
                return list(lists[0])
        elif not _is_list(given):
            return [self._id(given, label)]
        elif len(given) == 1:
            return self._mode(name, given[0], label)
        raise ValueError(
            f"{label}: mode {name!r} opens with one token, or with one sequence {{'seq': [[...]]}}; got {given!r}"
        )

    def _ids(self, pattern, label: str) -> list[int]:
        parts, form, argument = _parts(pattern, label)
        if form == "seq":
            lists = self._seq(argument, label)
            if any(len(ids) > 1 for ids in lists):
                raise ValueError(f"{label} takes ids, and {pattern!r} is a sequence: give the ids one by one")
            return sorted({ids[0] for ids in lists})
        if form == "text":
            raise ValueError(f"{label} takes ids, and {pattern!r} is bytes of several tokens: give the ids, or 'ends'")
        if form:
            return self._spelled(form, argument, label)
        return sorted(
            {token for each in parts for token in (self._ids(each, label) if _nests(each) else [self._id(each, label)])}
        )

    def _automaton(self, pattern, label: str, counted: bool) -> Automaton:
        parts, form, argument = _parts(pattern, label)
        if form == "text":
            vocabulary = self._needs(label, f"{pattern!r}")
            texts = _texts(form, argument, label)
            return automata.union([automata.text(t.encode(), vocabulary.bytes, counted=counted) for t in texts])
        if form == "seq":
            return automata.sequences(self._seq(argument, label))
        if form:
            return automata.any_of(self._spelled(form, argument, label))
        plain = [each for each in parts if not _nests(each)]
        found = [automata.any_of(self._id(each, label) for each in plain)] if plain else []
        return automata.union(found + [self._automaton(each, label, counted) for each in parts if _nests(each)])

    def _seq(self, argument, label: str) -> list[tuple[int, ...]]:
        if not _is_list(argument) or not argument or not all(_is_list(each) and each for each in argument):
            raise ValueError(f"{label}: 'seq' takes a list of lists of tokens, none empty; got {argument!r}")
        return [tuple(self._id(token, label) for token in each) for each in argument]

    def _spelled(self, form: str, argument, label: str) -> list[int]:
        texts = _texts(form, argument, label)
        spelled = self._needs(label, f"{{{form!r}: ...}}").bytes
        if form == "ends":
            ends = tuple(text.encode() for text in texts)
            found = sorted(token for token, own in spelled.items() if own.endswith(ends))
        else:
            found = self._words(texts, spelled)
        if not found:
            raise ValueError(f"{label}: no single token of this tokenizer {_DOES[form]} {texts!r}")
        return found

    def _words(self, words, spelled: Mapping[int, bytes]) -> list[int]:
        wanted: dict[str, list[int]] = {word.lower(): [] for word in words}
        for token, own in spelled.items():
            word = own.lstrip(b" \t").decode(errors="replace").lower()
            if word in wanted:
                wanted[word].append(token)
        self.missing_words += [word for word, ids in wanted.items() if not ids and word not in self.missing_words]
        return sorted(token for ids in wanted.values() for token in ids)

    def _blank_starts(self, ids: tuple[int, ...]) -> list[Automaton]:
        spelled = self._endings if self._vocabulary is None else self._vocabulary.bytes
        texts: list[bytes] = []
        for token in ids:
            own = spelled.get(token, b"")
            if not own or own.strip(b" \t\r\n\f\v"):
                break
            texts.append((texts[-1] if texts else b"") + own)
        return [] if len(texts) == len(ids) else [automata.text(each, spelled, at_end=True) for each in texts]


_DOES = {"word": "spells", "ends": "ends with"}


def _parts(pattern, label: str) -> tuple[list, str, object]:
    """(any-of parts, form, its argument) of a pattern; a form has no parts."""
    if isinstance(pattern, Mapping):
        if len(pattern) != 1 or next(iter(pattern)) not in _FORMS:
            raise ValueError(f"{label}: a pattern has one key of {', '.join(map(repr, _FORMS))}; got {dict(pattern)!r}")
        return [], *next(iter(pattern.items()))
    if _is_list(pattern):
        if not pattern:
            raise ValueError(f"{label}: a pattern must hold at least one token; got {pattern!r}")
        return list(pattern), "", None
    return [pattern], "", None


def _texts(form: str, argument, label: str) -> list[str]:
    texts = [argument] if isinstance(argument, str) else argument
    if not _is_list(texts) or not texts or not all(isinstance(each, str) and each for each in texts):
        raise ValueError(f"{label}: {form!r} takes a text or a list of them, none empty; got {argument!r}")
    return list(texts)


def _is_list(value) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _nests(part) -> bool:
    return isinstance(part, Mapping) or _is_list(part)


def _packed(automaton: Automaton) -> dict:
    """JSON data of an automaton: the ids of each class instead of the class of each id."""
    by_class: dict[int, list[int]] = {}
    for token, kind in automaton.classes.items():
        by_class.setdefault(kind, []).append(token)
    return {
        "classes": [by_class.get(kind, []) for kind in range(1, len(automaton.table[0]))],
        "table": [list(row) for row in automaton.table],
        "accept": list(automaton.accept),
        "back": list(automaton.back),
    }


def _unpacked(packed: Mapping) -> Automaton:
    classes = {token: kind for kind, ids in enumerate(packed["classes"], 1) for token in ids}
    table = tuple(map(tuple, packed["table"]))
    return Automaton(classes, table, tuple(packed["accept"]), tuple(packed["back"]))
