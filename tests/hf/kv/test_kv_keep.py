"""`generate(kv_keep=)`: every score, batches, memory, reports and padding."""

import threading
from itertools import count

import pytest
import torch
from keep_rule import plain
from parity import CACHE, padded_inputs
from recorders import RowLengths
from tiny_models import EOS, FAST, SLOW, build, prompts, shared
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DynamicCache,
)

import adapt_kernels as ak
from adapt_kernels.hf.kv import kept_batch
from adapt_kernels.hf.kv.keep import _compared
from adapt_kernels.ops.kv_scores import kv_scores

MODES = ak.Modes(fast=FAST, slow=SLOW)
WIDTH, NEW = 8, 22
SCORES = ("key_norm", "value_norm", "key_diff", "snap", "tova", "r_kv")
CALL = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
SMALL = ak.KeepKV(8, 0.5, 3)


class SimulatedLayers:
    """An attention function that drops positions by itself, per layer and head, over Hugging Face's full cache."""

    row_independent = True

    numbers = count()

    def __init__(self, model, settings):
        self.settings, self.held, self.queries = settings, {}, {}
        self.name = f"simulated_keep_{next(self.numbers)}"
        AttentionInterface.register(self.name, self)
        AttentionMaskInterface.register(self.name, AttentionMaskInterface()["sdpa"])
        model.set_attn_implementation(self.name)
        self.sdpa = AttentionInterface()["sdpa"]

    def __call__(self, module, query, key, value, attention_mask, **settings):
        layer, width = module.layer_idx, key.shape[2]
        if query.shape[2] > 1:
            return self.sdpa(module, query, key, value, attention_mask, **settings)
        held = self.held.setdefault(layer, [[[] for _ in range(key.shape[1])] for _ in key])
        own = self.queries.setdefault(layer, [])
        visible = torch.zeros(len(key), key.shape[1], width, dtype=torch.bool)
        for row, heads in enumerate(held):
            for head, positions in enumerate(heads):
                visible[row, head, :WIDTH] = visible[row, head, positions] = visible[row, head, -1] = True
                positions.append(width - 1)
        own.append(query[:, :, 0])
        group = query.shape[1] // key.shape[1]
        mask = visible.repeat_interleave(group, 1)[:, :, None]
        mask = mask if attention_mask is None else mask & attention_mask
        out = self.sdpa(module, query, key, value, mask, **settings)
        if len(held[0][0]) > self.settings.budget:
            self.drop(held, key, value, own, settings["scaling"])
        return out

    def drop(self, held, keys, values, queries, scale):
        index = torch.tensor(held)[..., None].expand(-1, -1, -1, keys.shape[-1])
        last = torch.stack(queries[-self.settings.queries :], 2) if self.settings.queries else None
        scores = kv_scores(self.settings.score, keys.gather(2, index), values.gather(2, index), last, None, scale)
        scores = _compared(scores)
        window, outside = self.settings.window, self.settings.outside(self.settings.budget + 1)
        for row, heads in enumerate(held):
            for head, positions in enumerate(heads):
                own = scores[row] if scores.ndim == 2 else scores[row, head]
                heads[head] = [positions[i] for i in plain(own.tolist(), window, outside, [False] * len(own))]


@pytest.mark.parametrize("layout", ["rows", "shared"])
@pytest.mark.parametrize("score", SCORES)
def test_scores_choose_for_each_layer_and_head(score, layout):
    settings = ak.KeepKV(9, 0.4, 4, score)
    call = {**padded_inputs(), **CALL, "seed": 1}
    model = build("llama")
    with ak.patched(model, MODES):
        ours = model.generate(**call, kv_keep=settings, kv_layout=layout, return_dict_in_generate=True)
        plain_call = model.generate(**call)
    assert ours.stats.kv_evictions >= 2
    SimulatedLayers(model, settings)
    theirs = model.generate(**padded_inputs(), **CALL)
    assert torch.equal(ours.sequences, theirs)
    assert not torch.equal(ours.sequences, plain_call), "evictions must change something"


class KeyNorm:
    """kvpress's signature; notes what it was given. Rounds as the score named "key_norm" does: some keys have one norm
    but for the processor's rounding."""

    def __init__(self):
        self.seen = []

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        self.seen.append((module, hidden_states, keys.shape, attentions, kwargs))
        assert values.shape == keys.shape
        return _compared(kv_scores("key_norm", keys, values))


def test_objects_with_the_signature_of_kvpress():
    model, press = build("llama"), KeyNorm()
    with ak.patched(model, MODES):
        ours = model.generate(**padded_inputs(), **CALL, kv_keep=ak.KeepKV(8, 0.5, 3, press))
        named = model.generate(**padded_inputs(), **CALL, kv_keep=ak.KeepKV(8, 0.5, 3, "key_norm"))
    assert torch.equal(ours, named)
    attention = [layer.self_attn for layer in model.model.layers]
    assert [seen[0] for seen in press.seen[:2]] == attention
    module, hidden, keys, attentions, kwargs = press.seen[-1]
    assert hidden.shape == (3, 3, 32) and keys == (3, 2, 9, 8) and attentions is None
    assert kwargs["position_embeddings"][0].shape[-1] == 8
    assert not any(each._forward_pre_hooks for each in model.modules())


def test_the_inputs_of_attention_are_those_of_the_last_steps():
    model, press = build("llama"), KeyNorm()
    with ak.patched(model, MODES):
        model.generate(**padded_inputs(), **{**CALL, "max_new_tokens": 11}, kv_keep=ak.KeepKV(8, 0.5, 3, press))
        tokens = model.generate(**padded_inputs(), **CALL)
    module, hidden = press.seen[0][:2]
    layer = model.model.layers[0]
    expected = layer.input_layernorm(model.model.embed_tokens(tokens[:, WIDTH + 6 : WIDTH + 9]))
    torch.testing.assert_close(hidden, expected)


@pytest.mark.parametrize("shape", [(3, 9, 1), (3, 8), (1, 2, 9)])
def test_objects_must_score_every_position(shape):
    class Wrong(KeyNorm):
        def score(self, *given):
            return torch.zeros(shape)

    with ak.patched(build("llama"), MODES) as model, pytest.raises(ValueError, match=r"Wrong.score must give \[3, 9\]"):
        model.generate(**padded_inputs(), **CALL, kv_keep=ak.KeepKV(8, 0.5, 3, Wrong()))


class TestBatches:
    @pytest.mark.parametrize("score", ["random", "key_norm", "r_kv"])
    @pytest.mark.parametrize("layout", ["rows", "shared"])
    def test_a_row_keeps_its_tokens_in_any_batch(self, score, layout):
        settings = ak.KeepKV(8, 0.5, 3, score)
        call = {"max_new_tokens": NEW, "do_sample": True, "eos_token_id": EOS, "kv_keep": settings}
        together = {**padded_inputs(), "num_return_sequences": 3, "kv_layout": layout}
        seeds = torch.arange(9) + 5
        with ak.patched(shared("llama"), MODES) as model:
            # Rows leave at different steps.
            all_rows = model.generate(**together, **call, seed=seeds, mode="balanced")
            assert ak.last_stats(model).kv_evictions >= 2
            for row in range(9):
                ids, mask = (padded_inputs()[name][row // 3 : row // 3 + 1] for name in ("input_ids", "attention_mask"))
                mode = "fast" if row % 3 < 2 else "slow"
                alone = model.generate(ids, attention_mask=mask, **call, seed=seeds[row : row + 1], mode=mode)
                assert torch.equal(alone[0], all_rows[row, : alone.shape[1]])

    @pytest.mark.parametrize("compact_at", [0.0, 0.75, 1.0])
    @pytest.mark.parametrize("score", ["snap", "random"])
    def test_rows_that_leave_change_nothing(self, compact_at, score):
        settings = ak.KeepKV(8, 0.5, 3, score)
        ends = [RowLengths(WIDTH, [6, NEW, 12])]
        with ak.patched(shared("qwen3"), MODES) as model:
            free = model.generate(**padded_inputs(), **CALL, seed=3, kv_keep=settings)
            call = {**CALL, "eos_token_id": EOS, "suppress_tokens": [EOS], "seed": 3, "compact_at": compact_at}
            left = model.generate(**padded_inputs(), **call, stopping_criteria=ends, kv_keep=settings)
            suppressed = model.generate(**padded_inputs(), **call, kv_keep=settings)
        assert torch.equal(left[1], suppressed[1]) and torch.equal(left[2, : WIDTH + 12], suppressed[2, : WIDTH + 12])
        assert free.shape == suppressed.shape

    def test_two_threads_on_one_model(self):
        results = {}
        settings = ak.KeepKV(8, 0.5, 3, KeyNorm())

        def run(name, seed):
            results[name] = model.generate(prompts(3, WIDTH, seed), **CALL, kv_keep=settings)

        with ak.patched(build("llama"), MODES) as model:
            alone = {}
            for name in (0, 1):
                run(name, name)
                alone[name] = results[name]
            threads = [threading.Thread(target=run, args=(name, name)) for name in (0, 1)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert all(torch.equal(results[name], alone[name]) for name in (0, 1))


class TestMemory:
    def bytes_of(self, positions):
        return positions * 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, floats

    @pytest.mark.parametrize("score", ["recent", "key_norm"])
    def test_buffers_stop_at_the_budget(self, score):
        call = {"do_sample": True, "eos_token_id": None, "max_new_tokens": 300, "seed": 1, "num_return_sequences": 4}
        settings = ak.KeepKV(24, 0.5, 6, score)
        with ak.patched(shared("llama"), MODES) as model:
            model.generate(prompts(2, 20), **call, kv_layout="shared")
            full = ak.last_stats(model).kv_bytes_peak
            model.generate(prompts(2, 20), **call, kv_layout="shared", kv_keep=settings)
            stats = ak.last_stats(model)
        assert stats.kv_held_peak == 25 and stats.kv_evictions == 1 + (299 - 25) // (25 - settings.held)
        bound = self.bytes_of(2 * 20 + 8 * 25)
        # Growing needs the old buffer of one tensor beside the new one.
        assert bound <= stats.kv_bytes_peak <= 1.2 * bound and full > 5 * stats.kv_bytes_peak

    def test_a_returned_cache_holds_everything(self):
        call = {**padded_inputs(), **CALL, "return_dict_in_generate": True}
        with ak.patched(build("llama"), MODES) as model:
            out = model.generate(**call, kv_keep=SMALL)
            mask = torch.nn.functional.pad(padded_inputs()["attention_mask"], (0, NEW), value=1)
            kv_cache = out[CACHE]
            assert isinstance(kv_cache, DynamicCache) and kv_cache.get_seq_length() == WIDTH + NEW - 1
            longer = {"attention_mask": mask, "max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
            went_on = model.generate(out.sequences, **longer, **{CACHE: kv_cache})
            assert torch.equal(went_on, model.generate(out.sequences, **longer))


class TestReports:
    def test_why_a_setting_was_inactive(self):
        with ak.patched(shared("llama"), MODES) as model:
            model.generate(**padded_inputs(), **CALL, kv_keep=ak.KeepKV(NEW, 0.5, 3))
            stats = ak.last_stats(model)
            assert stats.kv_evictions == 0 and stats.kv_held_peak == NEW - 1
            assert stats.kv_keep_reason == f"no row held more than the budget of {NEW} positions before a forward"
            model.generate(**padded_inputs(), **CALL, kv_keep=ak.KeepKV(4, 1.0, 3))
            assert ak.last_stats(model).kv_keep_reason == "keep=1.0 drops nothing"
            model.generate(**padded_inputs(), **CALL)
            stats = ak.last_stats(model)
            assert stats.kv_evictions is None and stats.kv_held_peak is None and stats.kv_keep_reason == ""

    @pytest.mark.parametrize("embedded", [False, True])
    def test_positions_held_at_most(self, embedded):
        call = {**padded_inputs(), **CALL, "seed": 1}
        with ak.patched(shared("llama"), MODES) as model:
            if embedded:
                call["inputs_embeds"] = model.get_input_embeddings()(call.pop("input_ids")).detach()
            peaks = []
            # The last token's KV is never written: NEW - 1 positions beside the prompt.
            for budget in (NEW + 9, NEW + 7, NEW + 6, NEW + 5):
                model.generate(**call, kv_keep=ak.KeepKV(budget, 0.5, 3, count="all"))
                stats = ak.last_stats(model)
                peaks.append((stats.kv_held_peak, stats.kv_evictions))
        assert peaks == [(NEW + 7, 0), (NEW + 7, 0), (NEW + 7, 0), (NEW + 6, 1)]

    def test_random_needs_no_seed_and_obeys_one(self):
        settings = ak.KeepKV(8, 0.5, 3, "random")
        with ak.patched(shared("llama"), MODES) as model:
            torch.manual_seed(3)
            first = [model.generate(**padded_inputs(), **CALL, kv_keep=settings) for _ in range(6)]
            torch.manual_seed(3)
            assert torch.equal(first[0], model.generate(**padded_inputs(), **CALL, kv_keep=settings))
            assert any(not torch.equal(first[0], other) for other in first)


class Doubtful:
    """Scores that are no reason to keep a position, and yet one to keep it rather than padding."""

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        scores = -keys.norm(dim=-1)
        scores[:, 0], scores[:, 1, ::2] = -torch.inf, torch.nan
        return scores


@pytest.mark.parametrize("score", ["key_norm", "snap", "tova", Doubtful()])
def test_padding_goes_first_in_every_head(score, monkeypatch):
    """One mask serves all layers and heads, whatever else they hold."""
    evict, seen = kept_batch.Keeper.evict, []

    def spy(keeper, stores, watches, slots, gone):
        evict(keeper, stores, watches, slots, gone)
        real = torch.nn.functional.pad(padded_inputs()["attention_mask"], (0, 99), value=1)
        mask = keeper.held_mask(slots, stores)
        for held in keeper._held:
            heads = held if held.ndim == 3 else held[:, None]
            assert all(torch.equal(real.gather(1, heads[:, head].long()), mask) for head in range(heads.shape[1]))
        seen.append(int((mask == 0).sum()))

    monkeypatch.setattr(kept_batch.Keeper, "evict", spy)
    with ak.patched(build("llama"), MODES) as model:
        # 10 of 11 stay: rows with five, two and no pads give one position up each time.
        model.generate(**padded_inputs(), **CALL, kv_keep=ak.KeepKV(10, 0.9, 2, score, count="all"))
    assert seen[0] == 4 + 1 and seen[:5] == sorted(seen[:5], reverse=True) and seen[-1] == 0
