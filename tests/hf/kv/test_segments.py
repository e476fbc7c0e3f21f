"""Segments: what they hold equals a plain layer, their bytes are counted, and every one is given back."""

import gc
import random
import weakref

import pytest
import torch
from parity import CACHE
from recorders import CallbackStreamer, RaisingCriterion, RaisingProcessor, RowLengths
from tiny_models import EOS, FAST, SLOW, prompts, shared
from transformers.cache_utils import DynamicLayer

import adapt_kernels as ak
from adapt_kernels.hf.kv import segments
from adapt_kernels.hf.kv.allotment import Allotment, RecentLengths
from adapt_kernels.hf.kv.segments import KVLedger, SegmentedLayer

WIDTH = 6
MODES = ak.Modes(fast=ak.Mode(FAST, kv_tokens=5), slow=SLOW)
POSITION = 2 * 8 * 4  # bytes of one position of one tensor of shared("llama"): 2 heads of 8 floats
TENSORS = 4  # 2 layers, keys and values


class SpyLedger(KVLedger):
    """Also keeps the storages themselves, so that freeing is seen and not only booked."""

    made: list["SpyLedger"] = []

    def __init__(self):
        super().__init__()
        self.storages, self.seen_peak = weakref.WeakSet(), 0
        self.made.append(self)

    def adopt(self, tensor):
        self.storages.add(tensor.untyped_storage())
        self.seen_peak = max(self.seen_peak, sum(s.nbytes() for s in self.storages))
        return super().adopt(tensor)


@pytest.fixture
def ledgers(monkeypatch):
    from adapt_kernels.hf.kv import batch

    monkeypatch.setattr(batch, "KVLedger", SpyLedger)
    monkeypatch.setattr(SpyLedger, "made", [])
    return SpyLedger.made


def assert_all_free(ledgers):
    gc.collect()
    assert ledgers
    assert all(ledger.live_bytes == 0 for ledger in ledgers)


class TestLayer:
    def layer(self, dice, ledger, early):
        prompts_, heads, length, size = dice.randint(1, 4), dice.randint(1, 3), dice.randint(1, 9), dice.choice([1, 4])
        modes = ak.Modes(fast=ak.Mode(FAST, kv_tokens=early), slow=SLOW)
        plain = DynamicLayer()
        plain.update(torch.randn(prompts_, heads, length, size), torch.randn(prompts_, heads, length, size))
        allotment = Allotment(modes, RecentLengths(), length, most_new=1000)
        ours = DynamicLayer()
        ours.update(plain.keys.clone(), plain.values.clone())
        return plain, SegmentedLayer(ours, ledger, allotment)

    @pytest.mark.parametrize("seed", range(200))
    def test_random_histories_equal_a_plain_layer(self, seed):
        """Random expansion, writes, departures and permutations: same tensors, exact bytes, all freed."""
        dice, ledger = random.Random(seed), KVLedger()
        torch.manual_seed(seed)
        plain, ours = self.layer(dice, ledger, dice.choice([1, 3, 8]))
        for _ in range(dice.randint(1, 25)):
            rows = len(plain.keys)
            event = dice.choice(["write", "write", "write", "leave", "any"])
            if event == "write":
                new = torch.randn(2, rows, *plain.keys.shape[1:2], dice.choice([1, 1, 1, 4]), plain.keys.shape[3])
                for layer in (plain, ours):
                    keys, values = layer.update(*new)
            else:
                size = dice.randint(1, rows) if event == "leave" else dice.randint(1, 2 * rows)
                index = torch.randperm(rows)[:size].sort()[0] if event == "leave" else torch.randint(rows, (size,))
                plain.reorder_cache(index)
                ours.reorder_cache(index)
            assert torch.equal(ours.keys, plain.keys) and torch.equal(ours.values, plain.values)
            assert ours.get_seq_length() == plain.get_seq_length() <= ours.capacity
            assert ours.get_mask_sizes(1) == plain.get_mask_sizes(1)
            held = {ours.keys.untyped_storage().data_ptr(): ours.keys.untyped_storage().nbytes()}
            held[ours.values.untyped_storage().data_ptr()] = ours.values.untyped_storage().nbytes()
            assert ledger.live_bytes == sum(held.values()) <= ledger.peak_bytes
        ours.release()
        assert ledger.live_bytes == 0 and ours.get_seq_length() == 0

    def test_writes_in_place(self):
        _, ours = self.layer(random.Random(3), KVLedger(), early=8)
        ours.update(*torch.randn(2, *ours.keys.shape[:2], 1, ours.keys.shape[3]))
        where = ours.keys.data_ptr()
        for _ in range(7):
            ours.update(*torch.randn(2, *ours.keys.shape[:2], 1, ours.keys.shape[3]))
            assert ours.keys.data_ptr() == where

    def test_rows_from_the_tail_fill_holes_in_place(self):
        ledger = KVLedger()
        _, ours = self.layer(random.Random(3), ledger, early=8)
        ours.reorder_cache(torch.zeros(8, dtype=torch.int64))
        where, live = ours.keys.data_ptr(), ledger.live_bytes
        ours.reorder_cache(torch.tensor([0, 7, 2, 6]))
        assert ours.keys.data_ptr() == where and ledger.live_bytes == live


def call(model, lengths, **more):
    rows = len(lengths)
    ends = {"stopping_criteria": [RowLengths(WIDTH, lengths)], "eos_token_id": EOS, "suppress_tokens": [EOS]}
    return model.generate(prompts(rows, WIDTH), **{"max_new_tokens": 40, "do_sample": False, **ends, **more})


class TestCounts:
    def test_by_hand(self, ledgers):
        """6 rows of which 2 go on: early segments of 5, then late ones of 10, 20 and 40 positions."""
        with ak.patched(shared("llama"), MODES) as model:
            call(model, [4, 4, 4, 4, 36, 36])
            stats = ak.last_stats(model)
        early = POSITION * 6 * (WIDTH + 5)
        # Each growth holds one tensor twice; 39 positions are all that 40 new tokens need.
        grown = POSITION * 2 * ((TENSORS - 1) * (WIDTH + 39) + (WIDTH + 20) + (WIDTH + 39))
        first = TENSORS * early + POSITION * 6 * WIDTH
        assert stats.kv_bytes_peak == max(first, grown) == ledgers[0].peak_bytes
        assert stats.row_steps == 3 * 6 + 32 * 2 and stats.row_steps_padded == 35 * 6
        assert stats.prefill_tokens == 6 * WIDTH

    @pytest.mark.parametrize("samples", [1, 4])
    def test_what_is_booked_is_what_exists(self, ledgers, samples):
        lengths = [4, 9, 4, 4, 36, 30]
        more = {"do_sample": True, "top_k": 1, "num_return_sequences": samples}
        with ak.patched(shared("llama"), MODES) as model:
            ends = [RowLengths(WIDTH, [length for length in lengths for _ in range(samples)])]
            call(model, lengths, stopping_criteria=ends, **more)
            peak = ak.last_stats(model).kv_bytes_peak
        assert peak == ledgers[0].peak_bytes == ledgers[0].seen_peak

    @pytest.mark.parametrize("architecture", ["mistral", "gemma3_text", "qwen3_next", "mamba", "falcon_h1"])
    def test_layers_of_other_kinds_count_too(self, architecture):
        """At least what the cache holds at any forward, which is seen from outside."""
        seen = []

        def watch(module, args, kwargs, output):
            cache = kwargs.get(CACHE, kwargs.get("cache_params"))
            states = [v for layer in cache.layers for v in _tensors(vars(layer))]
            storages = {v.untyped_storage().data_ptr(): v.untyped_storage().nbytes() for v in states}
            narrow = sum(v.numel() * v.element_size() for v in states)
            seen.append(min(sum(storages.values()), narrow))

        model = shared(architecture)
        handle = model.register_forward_hook(watch, with_kwargs=True)
        try:
            with ak.patched(model, MODES):
                call(model, [4, 9, 20])
                peak = ak.last_stats(model).kv_bytes_peak
        finally:
            handle.remove()
        assert max(seen) <= peak <= 2.5 * max(seen)


def _tensors(value):
    if torch.is_tensor(value):
        return [value]
    if isinstance(value, dict):
        return [t for v in value.values() for t in _tensors(v)]
    return []


class TestNoLeak:
    def test_after_calls_and_failures(self, ledgers):
        """200 random calls, a quarter of which fail somewhere in the middle."""
        dice = random.Random(0)
        with ak.patched(shared("llama"), MODES) as model:
            for number in range(200):
                rows, steps = dice.randint(1, 5), dice.randint(1, 12)
                more = {"max_new_tokens": steps, "return_dict_in_generate": dice.random() < 0.2}
                if number % 4 == 0:
                    more |= {"streamer": CallbackStreamer(self.failing(dice.randint(1, 4)))}
                try:
                    call(model, [dice.randint(1, 12) for _ in range(rows)], **more)
                except RuntimeError as error:
                    assert str(error) == "the listener failed"
                del more
        assert len(ledgers) == 200
        assert_all_free(ledgers)
        assert sum(len(ledger.storages) for ledger in ledgers) == 0

    def failing(self, after):
        left = [after]

        def listen():
            left[0] -= 1
            if left[0] == 0:
                raise RuntimeError("the listener failed")

        return listen

    @pytest.mark.parametrize(
        "broken",
        [{"stopping_criteria": [RaisingCriterion()]}, {"logits_processor": [RaisingProcessor(3)]}],
        ids=["criterion", "processor"],
    )
    def test_after_an_exception(self, ledgers, broken):
        with ak.patched(shared("llama"), MODES) as model:
            with pytest.raises(RuntimeError, match="failed"):
                call(model, [3, 9], **broken)
            call(model, [3, 9])
        assert_all_free(ledgers)

    def test_a_returned_cache_belongs_to_the_caller(self, ledgers):
        with ak.patched(shared("llama"), MODES) as model:
            out = call(model, [9, 9], return_dict_in_generate=True)
        assert_all_free(ledgers)
        assert len(ledgers[0].storages) == TENSORS
        del out
        gc.collect()
        assert len(ledgers[0].storages) == 0


class TestAllotment:
    def allotment(self, fast=None, slow=None, recent=(), most_new=1000):
        modes = ak.Modes(fast=ak.Mode(FAST, kv_tokens=fast), slow=ak.Mode(SLOW, kv_tokens=slow))
        lengths = RecentLengths()
        lengths.add(list(recent))
        return Allotment(modes, lengths, 100, most_new)

    @pytest.mark.parametrize(
        ("settings", "early"),
        [
            ({}, 64),
            ({"fast": 20}, 20),
            ({"recent": range(1, 101)}, 96),
            ({"recent": [7] * 30}, 7),
            ({"fast": 20, "recent": [7] * 30}, 20),
            ({"most_new": 10}, 10),
            ({"slow": 500}, 64),
        ],
        ids=str,
    )
    def test_early(self, settings, early):
        allotment = self.allotment(**settings)
        assert allotment.early == early
        assert allotment.capacity(100) == allotment.capacity(100 + early) == 100 + early
        learnt = min(allotment.kv_tokens[-1].item(), 64 if not settings.get("recent") else 96)
        assert allotment.kv_tokens.tolist() == [early, settings.get("slow") or learnt, learnt]

    def test_late_doubles_up_to_what_can_be_needed(self):
        allotment = self.allotment(fast=20, most_new=150)
        assert [allotment.capacity(100 + n) - 100 for n in (20, 21, 40, 41, 81, 150)] == [20, 40, 40, 80, 150, 150]

    def test_late_starts_with_what_a_living_mode_was_promised(self):
        allotment = self.allotment(fast=20, slow=90)
        allotment.reserve([0, 1])
        assert allotment.capacity(121) == 190
        allotment.reserve([0])
        assert allotment.capacity(121) == 140

    def test_lengths_of_fast_rows_are_learnt(self):
        modes = ak.Modes(fast=ak.Mode(FAST, max_new_tokens=9), slow=SLOW)
        with ak.patched(shared("llama"), modes) as model:
            arguments = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
            call_ = {**arguments, "mode": ["fast", "slow", "fast"], "return_dict_in_generate": True}
            first = model.generate(prompts(3, WIDTH), **call_).stats.kv_bytes_peak
            second = model.generate(prompts(3, WIDTH), **call_).stats.kv_bytes_peak
        # At first 29 positions for 3 rows, then 9 for them and 29 for the slow one.
        assert first == POSITION * 3 * (TENSORS * (WIDTH + 29) + WIDTH)
        assert second < first
        assert isinstance(segments.KVLedger().peak_bytes, int)


def test_peak_bytes_against_huggingfaces():
    """4 prompts of 512 with 16 samples, 56 rows of 50 tokens and 8 of 2000: allocation alone, without a model."""
    modes, ledger = ak.Modes(fast=ak.Mode(FAST, kv_tokens=50), slow=SLOW), KVLedger()
    plain = DynamicLayer()
    plain.update(*torch.zeros(2, 4, 1, 512, 1))
    layer = SegmentedLayer(plain, ledger, Allotment(modes, RecentLengths(), 512, most_new=1999))
    layer.reorder_cache(torch.arange(4).repeat_interleave(16))
    for step in range(1999):
        if step == 49:
            layer.reorder_cache(torch.arange(8))
        layer.update(*torch.zeros(2, len(layer.keys), 1, 1, 1))
    huggingface = 2 * 64 * (512 + 1999) * 4
    assert huggingface / ledger.peak_bytes >= 2.3


def test_states_of_a_row_leave_out_what_has_no_row_of_it():
    layer = DynamicLayer()
    layer.state, layer.shared, layer.one = torch.arange(6.0).view(3, 2), torch.ones(2, 5), torch.ones(1, 5)
    layer.names = {"of": torch.ones(3, 1)}
    assert [state.tolist() for state in segments.row_states(layer, 2)] == [[4.0, 5.0], [1.0]]
    assert len(segments.row_states(layer, 1)) == 3
