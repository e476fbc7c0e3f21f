"""Automata over token ids: which tokens complete a pattern, and how many tokens a half-written one holds.

A state is one byte; an id acts through its class, so a step is one gather of the class and one of the next state.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_MAX_STATES = 255


@dataclass(frozen=True)
class Automaton:
    """A deterministic automaton; state 0 is the start, class 0 every id that `classes` does not list.

    table[state][class] is the next state, accept[state] whether its last token completed the pattern, back[state] the
    tokens of the match then completed, or else of the longest one begun.
    """

    classes: Mapping[int, int]
    table: tuple[tuple[int, ...], ...]
    accept: tuple[bool, ...]
    back: tuple[int, ...]

    def step(self, state: int, token: int) -> int:
        """The state after one more token."""
        return self.table[state][self.classes.get(token, 0)]

    def completes(self, tokens: Iterable[int]) -> bool:
        """Whether the pattern is completed anywhere in `tokens`, read from the start."""
        state = 0
        for token in tokens:
            state = self.step(state, token)
            if self.accept[state]:
                return True
        return False

    @property
    def largest_id(self) -> int:
        """The largest id with a class of its own, -1 = none."""
        return max(self.classes, default=-1)


def any_of(ids: Iterable[int]) -> Automaton:
    """The last token is one of `ids`, however many."""
    return Automaton(dict.fromkeys(sorted(set(ids)), 1), ((0, 1), (0, 1)), (False, True), (0, 1))


def sequences(wanted: Sequence[tuple[int, ...]]) -> Automaton:
    """The history ends with one of the id sequences (Aho and Corasick, 1975)."""
    prefixes = sorted({ids[:n] for ids in wanted for n in range(len(ids) + 1)}, key=lambda ids: (len(ids), ids))
    place = {ids: state for state, ids in enumerate(prefixes)}
    alphabet = sorted({token for ids in wanted for token in ids})

    def longest(history: tuple[int, ...], among) -> tuple[int, ...]:
        return next((history[n:] for n in range(len(history)) if history[n:] in among), ())

    whole = {ids: longest(ids, set(wanted)) for ids in prefixes}
    table = tuple((0, *(place[longest((*ids, token), place)] for token in alphabet)) for ids in prefixes)
    _check_states("seq", len(table))
    return Automaton(
        classes={token: index for index, token in enumerate(alphabet, 1)},
        table=table,
        accept=tuple(bool(whole[ids]) for ids in prefixes),
        back=tuple(len(whole[ids] or ids) for ids in prefixes),
    )


def text(wanted: bytes, vocabulary: Mapping[int, bytes], at_end: bool = False, counted: bool = False) -> Automaton:
    """The last token completed the bytes `wanted`, anywhere inside it; with `at_end` at its end.

    counted: tell in `back` how many tokens a match holds (more states); else 1 where there is one.
    """
    walk = _TextWalk(wanted, at_end, counted)
    by_bytes: dict[bytes, list[int]] = {}
    for token, spelled in vocabulary.items():
        if walk.concerns(spelled):
            by_bytes.setdefault(spelled, []).append(token)
    states = [((), 0)]
    place = {states[0]: 0}
    columns: dict[bytes, list[int]] = {spelled: [] for spelled in by_bytes}
    for state in states:  # grows while it is read
        for spelled, column in columns.items():
            after = walk.step(state, spelled)
            if after not in place:
                place[after] = len(states)
                states.append(after)
                _check_states(wanted.decode(errors="replace"), len(states))
            column.append(place[after])
    classes, kinds = {}, {(0,) * len(states): 0}
    for spelled, column in columns.items():
        kind = kinds.setdefault(tuple(column), len(kinds))
        if kind:
            classes.update(dict.fromkeys(by_bytes[spelled], kind))
    return Automaton(
        classes=classes,
        table=tuple(zip(*kinds, strict=True)),
        accept=tuple(matched > 0 for _, matched in states),
        back=tuple(matched or (begun[0][1] if begun else 0) for begun, matched in states),
    )


class _TextWalk:
    """Steps of a byte text.

    A state is (matches begun, tokens of the match just completed); the matches begun are (bytes, tokens) of every
    prefix of the text that the history ends with, longest first: the shorter ones are what is left when that one fails.
    """

    def __init__(self, wanted: bytes, at_end: bool, counted: bool):
        self.wanted, self.at_end, self.counted = wanted, at_end, counted
        size = len(wanted)
        self._inner = {wanted[i:j] for i in range(1, size) for j in range(i + 1, size + 1)}
        self._heads = tuple(wanted[:n] for n in range(size - 1, 0, -1))
        self._tails = tuple(wanted[n:] for n in range(1, size))

    def concerns(self, spelled: bytes) -> bool:
        """Whether the token does anything but send every state to the start."""
        return (
            not spelled
            or spelled in self._inner
            or self.wanted in spelled
            or spelled.endswith(self._heads)
            or spelled.startswith(self._tails)
        )

    def step(self, state, spelled: bytes):
        """The state after a token that spells these bytes."""
        before = dict(state[0])
        if not spelled:
            return state[0], 0
        held = max(before, default=0)
        seen = self.wanted[:held] + spelled

        def tokens(size: int) -> int:
            """Tokens behind the last `size` bytes."""
            return before[size - len(spelled)] + 1 if self.counted and size > len(spelled) else 1

        found = seen.endswith(self.wanted) if self.at_end else self.wanted in seen
        matched = 0
        if found:
            start = 0 if self.at_end else seen.find(self.wanted)
            # What of the match lies in earlier tokens is itself one of the matches begun there.
            matched = before[held - start] + 1 if self.counted and start < held else 1
        return tuple((len(head), tokens(len(head))) for head in self._heads if seen.endswith(head)), matched


def union(automata: Sequence[Automaton]) -> Automaton:
    """One of several patterns: their product, reached states only."""
    if len(automata) == 1:
        return automata[0]
    listed = sorted({token for each in automata for token in each.classes})
    kinds = {(0,) * len(automata): 0}
    classes = {}
    for token in listed:
        classes[token] = kinds.setdefault(tuple(each.classes.get(token, 0) for each in automata), len(kinds))
    states, table = [(0,) * len(automata)], []
    place = {states[0]: 0}
    for state in states:  # grows while it is read
        row = []
        for kind in kinds:
            after = tuple(each.table[s][k] for each, s, k in zip(automata, state, kind, strict=True))
            if after not in place:
                place[after] = len(states)
                states.append(after)
                _check_states("any-of list", len(states))
            row.append(place[after])
        table.append(tuple(row))
    accept = [[each.accept[s] for each, s in zip(automata, state, strict=True)] for state in states]
    back = [[each.back[s] for each, s in zip(automata, state, strict=True)] for state in states]
    return Automaton(
        classes=classes,
        table=tuple(table),
        accept=tuple(map(any, accept)),
        back=tuple(
            max(b for b, a in zip(backs, accepts, strict=True) if a or not any(accepts))
            for backs, accepts in zip(back, accept, strict=True)
        ),
    )


def _check_states(what: str, states: int) -> None:
    if states > _MAX_STATES:
        raise ValueError(f"the pattern {what!r} needs more than {_MAX_STATES} states: shorten it or split it")
