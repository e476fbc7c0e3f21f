"""The KV store interface in both layouts: random histories equal plain tensors, in place and to the last bit."""

import random

import pytest
import torch
from tiny_models import FAST, SLOW
from transformers.cache_utils import DynamicLayer

import adapt_kernels as ak
from adapt_kernels.hf.kv.allotment import Allotment, RecentLengths
from adapt_kernels.hf.kv.segments import KVLedger, SegmentedLayer
from adapt_kernels.hf.kv.shared_prompts import PromptRows, SharedPromptLayer
from adapt_kernels.hf.kv.store import KVStore

LENGTH, SIZE = 3, 4
MODES = ak.Modes(fast=ak.Mode(FAST, kv_tokens=4), slow=SLOW)


class History:
    """A store and what it must hold, as plain tensors [slots, heads, held, SIZE]."""

    def __init__(self, layout: str, prompts: int = 2, heads: int = 2):
        self.ledger, self.heads, self.rows = KVLedger(), heads, PromptRows(prompts, None)
        self.prompt = torch.randn(2, prompts, heads, LENGTH, SIZE)
        plain = DynamicLayer()
        plain.update(*self.prompt.clone())
        self.shared, self.of_slot = layout == "shared", torch.arange(prompts)
        if self.shared:
            self.rows.place(self.of_slot)
            allotment = Allotment(MODES, RecentLengths(), 0, most_new=100)
            self.store = SharedPromptLayer(plain, self.ledger, allotment, self.rows)
        else:
            self.store = SegmentedLayer(plain, self.ledger, Allotment(MODES, RecentLengths(), LENGTH, most_new=100))
        self.held, self.seen = list(self.prompt), LENGTH

    def append(self, width=1):
        new = torch.randn(2, len(self.held[0]), self.heads, width, SIZE)
        self.held = [torch.cat(pair, 2) for pair in zip(self.held, new, strict=True)]
        self.seen += width
        self.store.append(*new)

    def reorder(self, index):
        self.held = [tensor[index] for tensor in self.held]
        self.of_slot = self.of_slot[index]
        self.store.reorder(index)
        if self.shared:
            self.rows.place(self.of_slot)

    def keep(self, index):
        by_head = index if index.ndim == 3 else index[:, None].expand(-1, self.heads, -1)
        self.held = [tensor.gather(2, by_head[..., None].expand(-1, -1, -1, SIZE)) for tensor in self.held]
        self.store.keep(index)

    def crop(self, length):
        kept = len(self.held[0][0, 0]) + length if length < 0 else length
        self.seen -= len(self.held[0][0, 0]) - kept
        self.held = [tensor[:, :, :kept] for tensor in self.held]
        self.store.crop(length)

    def random_index(self, dice):
        slots, held = len(self.held[0]), self.held[0].shape[2]
        count = dice.randint(0, held - LENGTH)
        shape = (slots, self.heads) if dice.random() < 0.5 else (slots,)
        own = torch.rand(*shape, held - LENGTH).argsort(-1)[..., :count].sort(-1).values + LENGTH
        return torch.cat([torch.arange(LENGTH).expand(*shape, -1), own], -1)

    def check(self):
        assert self.store.seen == self.seen and self.store.held == self.held[0].shape[2]
        assert self.store.get_seq_length() == self.store.held <= self.store.capacity
        everything = torch.arange(len(self.held[0]))
        for found, expected in zip(self.store.read(everything), self.held, strict=True):
            assert torch.equal(found, expected)
        for found, expected in zip(self.store.counted(LENGTH), self.held, strict=True):
            assert torch.equal(found, expected[:, :, LENGTH:])


@pytest.mark.parametrize("layout", ["rows", "shared"])
@pytest.mark.parametrize("seed", range(60))
def test_random_histories(layout, seed):
    dice = random.Random(seed)
    torch.manual_seed(seed)
    history = History(layout)
    history.reorder(torch.randint(2, (dice.randint(2, 6),)))
    for _ in range(dice.randint(4, 20)):
        slots, held = len(history.held[0]), history.held[0].shape[2]
        event = dice.choice(["append", "append", "append", "leave", "keep", "keep", "crop"])
        if event == "append":
            history.append(dice.choice([1, 1, 3]))
        elif event == "leave":
            history.reorder(torch.randperm(slots)[: dice.randint(1, slots)])
        elif event == "keep":
            history.keep(history.random_index(dice))
        else:
            history.crop(dice.choice([dice.randint(LENGTH, held), min(-1, LENGTH - held) if held > LENGTH else held]))
        history.check()
    assert isinstance(history.store, KVStore)
    detached = history.store.detach()
    assert torch.equal(detached.keys, history.held[0]) and torch.equal(detached.values, history.held[1])
    assert history.ledger.live_bytes == 0 and history.store.seen == 0


@pytest.mark.parametrize("layout", ["rows", "shared"])
def test_keeps_in_place(layout):
    history = History(layout)
    for _ in range(4):
        history.append()
    peak, where = history.ledger.peak_bytes, history.store.counted(LENGTH)[0].data_ptr()
    history.keep(torch.tensor([[0, 1, 2, 4, 6], [0, 1, 2, 3, 5]]))
    for _ in range(2):
        history.append()
    history.check()
    assert history.store.counted(LENGTH)[0].data_ptr() == where and history.ledger.peak_bytes == peak


@pytest.mark.parametrize("layout", ["rows", "shared"])
def test_keeping_everything_touches_nothing(layout):
    history = History(layout)
    history.append(4)
    version = [buffer._version for buffer in history.store._buffers]
    history.keep(torch.arange(LENGTH + 4).expand(2, -1))
    history.check()
    assert [buffer._version for buffer in history.store._buffers] == version


def test_rows_may_drop_their_prompts_and_shared_ones_may_not():
    history = History("rows")
    history.append(2)
    history.keep(torch.tensor([[1, 3, 4], [0, 2, 4]]))
    assert torch.equal(history.store.keys, history.held[0])
    history = History("shared")
    history.append(2)
    for index in ([[1, 3, 4], [0, 2, 4]], [[0, 1], [0, 1]]):
        with pytest.raises(ValueError, match="index must hold the prompt's positions 0 to 2"):
            history.store.keep(torch.tensor(index))


@pytest.mark.parametrize(
    ("index", "text"),
    [
        (torch.zeros(3, 1, dtype=torch.int64), r"of shape \[2, k\] or \[2, 2, k\]; got torch.int64 \(3, 1\)"),
        (torch.zeros(2, 1), r"got torch.float32 \(2, 1\)"),
        (torch.tensor([[0, 2, 1], [0, 1, 2]]), "ascending positions of the 5 that are held"),
        (torch.tensor([[0, 1, 1], [0, 1, 2]]), "ascending positions"),
        (torch.tensor([[0, 1, 5], [0, 1, 2]]), r"in \[0, 5\)"),
        (torch.tensor([[-1, 1, 2], [0, 1, 2]]), r"in \[0, 5\)"),
    ],
)
@pytest.mark.parametrize("layout", ["rows", "shared"])
def test_refuses_other_indices(layout, index, text):
    history = History(layout)
    history.append(2)
    with pytest.raises(ValueError, match=text):
        history.store.keep(index)
    history.check()


@pytest.mark.parametrize("layout", ["rows", "shared"])
def test_refuses_to_crop_what_is_not_held(layout):
    history = History(layout)
    history.append(2)
    with pytest.raises(ValueError, match="of the 5 held positions; got 6"):
        history.store.crop(6)
    if layout == "shared":
        with pytest.raises(ValueError, match="crop must leave 3 to 5"):
            history.store.crop(2)
    history.check()
