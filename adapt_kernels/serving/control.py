"""`RowControl`: the one map from an engine's slots to the rows that follow settings, and one step of all of them."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from adapt_kernels.ops.steer import POSITION, Decision, SteerState
from adapt_kernels.serving.lane import Lane, Row
from adapt_kernels.serving.writing import write

_IDLE_LANES = 16  # programs whose tables are kept while no row follows them


@dataclass
class Placed:
    """A row of a slot: its lane, its place there, and how many tokens the lane has surely seen of it."""

    row: Row
    lane: Lane
    place: int
    said: int


class Batch(Protocol):
    """What an engine tells of one step, by number of the steered rows in it."""

    @property
    def slots(self) -> Sequence[Any]:
        """Of each steered row, on the host: a number, or whatever the engine tells rows by."""

    @property
    def rows(self) -> Sequence[int]:
        """Its row of the logits."""

    @property
    def least(self) -> Sequence[int]:
        """Tokens it has generated, at least, on the host; negative in the middle of a prompt."""

    @property
    def most(self) -> Sequence[int]:
        """At most."""

    def generated(self, which: Sequence[int]) -> torch.Tensor:
        """The same exactly, [n] int64 on the device, for the rows of these numbers."""

    def tokens(self, which: Sequence[int], placed: Sequence[Placed], round: int, position) -> torch.Tensor:
        """Their tokens [n] int64 at `position` [n]: the round-th after `said`. Anything where they have none."""


class HostTokens:
    """The `Batch` of an engine that keeps its tokens in lists."""

    def __init__(self, control: "RowControl", rows: Iterable[tuple[Hashable, int]]):
        """rows: (slot, row of the logits) of the batch; those that are not steered are left out."""
        steered = [(slot, row) for slot, row in rows if slot in control]
        self.slots, self.rows = [slot for slot, _ in steered], [row for _, row in steered]
        self.least = self.most = [len(control[slot].row.generated) for slot in self.slots]
        self._device = control.device

    def generated(self, which):
        """See `Batch`."""
        return torch.tensor([self.most[n] for n in which], dtype=torch.int64, device=self._device)

    def tokens(self, which, placed, round, position):
        """See `Batch`."""
        found = [each.row.generated[each.said + round : each.said + round + 1] or [0] for each in placed]
        return torch.tensor([token for [token] in found], dtype=torch.int64, device=self._device)


class RowControl:
    """The steered rows of one engine; slots without settings are not in it and cost nothing."""

    def __init__(self, served, vocab_size: int, device, backend: str = "auto"):
        self.served, self.device, self._vocab_size, self._backend = served, device, vocab_size, backend
        self._rows: dict[Hashable, Placed] = {}
        self._lanes: dict[tuple, Lane] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, slot: Hashable) -> bool:
        return slot in self._rows

    def __iter__(self):
        return iter(self._rows)

    def __getitem__(self, slot: Hashable) -> Placed:
        return self._rows[slot]

    def add(self, slot: Hashable, row: Row) -> None:
        """A row enters a slot; who was there has left."""
        self.drop(slot)
        lane = self.lane(row.settings)
        self._rows[slot] = Placed(row, lane, lane.admit(row), len(row.generated))

    def lane(self, settings) -> Lane:
        """Where rows with the same programs as these settings are."""
        programs = self.served.programs_of(settings)
        lane = self._lanes.pop(programs, None)
        if lane is None:
            idle = [each for each, old in self._lanes.items() if old.empty]
            for each in idle[: max(0, len(idle) - _IDLE_LANES)]:
                del self._lanes[each]
            lane = Lane(programs, self.served, self._vocab_size, self.device, self._backend)
        self._lanes[programs] = lane
        return lane

    def drop(self, slot: Hashable) -> None:
        """Whoever is in the slot has left."""
        placed = self._rows.pop(slot, None)
        if placed is not None:
            placed.lane.release(placed.place)

    def move(self, source: Hashable, target: Hashable) -> None:
        """The row of one slot is now in another, whose own row has left."""
        self.drop(target)
        if source in self._rows:
            self._rows[target] = self._rows.pop(source)

    def swap(self, one: Hashable, two: Hashable) -> None:
        """Two slots have changed places."""
        first, second = self._rows.pop(one, None), self._rows.pop(two, None)
        for slot, placed in ((two, first), (one, second)):
            if placed is not None:
                self._rows[slot] = placed

    def due(self, batch: Batch) -> dict[Lane, list[int]]:
        """{lane: numbers of the batch's rows that it may have something to say about, in order}."""
        found: dict[Lane, list[int]] = {}
        for number, slot in enumerate(batch.slots):
            placed = self._rows[slot]
            # In the middle of a prompt, or of one that is computed anew, what is drawn is thrown away.
            begun = batch.most[number] >= placed.said
            if begun and max(placed.said, batch.least[number]) < placed.lane.last:
                found.setdefault(placed.lane, []).append(number)
        return found

    def caught_up(
        self, lane: Lane, which: Sequence[int], batch: Batch, drafts: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor, SteerState, Decision]:
        """(places, generated [n], state, decision) of a lane's rows after all they have said.

        drafts: tokens that a step may add beside its one; where 0, `batch.most` is exact.
        """
        placed = [self._rows[batch.slots[number]] for number in which]
        places = self.ids([each.place for each in placed])
        rounds = max(batch.most[n] - each.said for n, each in zip(which, placed, strict=True))
        generated = batch.generated(which)
        state, decision = lane.catch_up(
            places,
            generated,
            lambda number, position: batch.tokens(which, placed, number, position),
            min(rounds, 1 + drafts) if drafts else rounds,
        )
        for number, each in zip(which, placed, strict=True):
            each.said = max(each.said, batch.least[number])
        return places, generated, state, decision

    def step(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Edit the logits [N, V] of one token per row, in place, and return them."""
        for lane, which in self.due(batch).items():
            places, generated, state, decision = self.caught_up(lane, which, batch)
            ready = state.numbers[:, POSITION] == generated
            write(lane, logits, self.ids([batch.rows[n] for n in which]), places, generated, decision, ready)
        return logits

    def ids(self, numbers: Sequence[int]) -> torch.Tensor:
        """int64 on the device, from the host."""
        return torch.tensor(numbers, dtype=torch.int64, device=self.device)
