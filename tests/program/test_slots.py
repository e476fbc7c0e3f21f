"""`Slots`: entries of the rows that are decoded, and back to all rows."""

import pytest
import torch

from adapt_kernels.program.slots import Slots

PER_ROW = torch.arange(8).reshape(4, 2)


def test_every_row_in_order_hands_tensors_through():
    slots = Slots(4, "cpu")
    assert slots.in_order and len(slots) == slots.rows == 4 and slots.host.tolist() == [0, 1, 2, 3]
    assert slots.take(PER_ROW) is PER_ROW and slots.spread(PER_ROW, 7) is PER_ROW
    assert slots.put(PER_ROW + 1, PER_ROW) is PER_ROW


@pytest.mark.parametrize("held", [[3, 0], [1, 0, 3, 2], [2], []])
def test_entries_of_the_slots_and_back(held):
    slots = Slots(4, "cpu").holding(torch.tensor(held, dtype=torch.int64))
    assert len(slots) == len(held) and slots.rows == 4 and not slots.in_order
    taken = slots.take(PER_ROW)
    assert taken.tolist() == [PER_ROW[row].tolist() for row in held]
    left = {row: [9, 9] for row in range(4)}
    spread = left | {row: PER_ROW[row].tolist() for row in held}
    assert slots.spread(taken, 9).tolist() == slots.spread(taken, torch.tensor(9)).tolist() == list(spread.values())
    replaced = [(-PER_ROW[row] if row in held else PER_ROW[row]).tolist() for row in range(4)]
    assert slots.put(PER_ROW, -taken).tolist() == replaced
    assert PER_ROW.flatten().tolist() == list(range(8)) and slots.spread(None, 9) is None
    assert [slots.row(torch.tensor(slot)) for slot in range(len(held))] == held


def test_other_rows_make_other_slots():
    first = Slots(3, "cpu")
    second = first.holding(torch.tensor([2, 1]))
    assert first.in_order and second.holding(torch.arange(3)).in_order and not second.in_order
