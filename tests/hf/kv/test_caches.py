"""Given, static, chunked and continued caches, against the unpatched model."""

import pytest
import torch
from parity import CACHE, GREEDY, MODES, NEW, WIDTH, assert_same, both, cached, padded_inputs
from recorders import RowLengths, forward_calls
from tiny_models import EOS, FAST, PAD, SLOW, build, prompts, shared
from transformers import DynamicCache, StaticCache

import adapt_kernels as ak


class TestCaches:
    def test_given_cache_is_filled_in_place(self):
        caches = []

        def call(model):
            caches.append(DynamicCache(config=model.config))
            return model.generate(**padded_inputs(), **{CACHE: caches[-1]}, **GREEDY)

        unpatched, patched = both(shared("llama"), call, "sample_only")
        assert torch.equal(unpatched, patched)
        assert_same(tuple(cached(caches[1])), tuple(cached(caches[0])))

    def test_continuation(self):
        def call(model):
            first = model.generate(prompts(2, WIDTH), return_dict_in_generate=True, **no_pad)
            longer = torch.cat([first.sequences, prompts(2, 3, seed=5)], 1)
            return model.generate(longer, **{CACHE: first[CACHE]}, **no_pad)

        # A generated pad would be masked as a prompt's padding.
        no_pad = {**GREEDY, "suppress_tokens": [PAD]}
        unpatched, patched = both(shared("llama"), call, "sample_only")
        assert torch.equal(unpatched, patched)
        fresh = shared("llama").generate(patched[:, : WIDTH + NEW + 3], **no_pad)
        assert torch.equal(patched, fresh)

    def test_continuation_computes_only_what_is_not_cached(self):
        with ak.patched(build("llama"), MODES) as model:
            first = model.generate(prompts(2, WIDTH), return_dict_in_generate=True, **GREEDY)
            longer = torch.cat([first.sequences, prompts(2, 3, seed=5)], 1)
            with forward_calls(model) as calls:
                out = model.generate(
                    longer, **{CACHE: first[CACHE]}, mode="fast", return_dict_in_generate=True, **GREEDY
                )
        # The last generated token was never fed back, so it is computed with the 3 that were added.
        assert calls[0]["input_ids"].shape == (2, 4) and out.stats.prefill_tokens == 2 * 4
        assert (out.sequences[:, WIDTH + NEW + 3] == FAST).all()

    def test_only_the_tokens_after_the_cache_are_given(self):
        arguments = {"attention_mask": torch.ones(2, WIDTH + 2, dtype=torch.long), "return_dict_in_generate": True}
        with ak.patched(build("llama"), MODES) as model:
            first = model.generate(prompts(2, 2), max_new_tokens=1, return_dict_in_generate=True, eos_token_id=None)
            with forward_calls(model) as calls:
                out = model.generate(prompts(2, WIDTH, seed=3), **{CACHE: first[CACHE]}, **arguments, **GREEDY)
        assert calls[0]["input_ids"].shape == (2, WIDTH)
        assert out.stats.prefill_tokens == 2 * WIDTH

    def test_given_static_cache(self):
        def call(model):
            cache = StaticCache(config=model.config, max_cache_len=64)
            first = model.generate(prompts(2, WIDTH), **{CACHE: cache}, **no_pad)
            return model.generate(torch.cat([first, prompts(2, 3)], 1), **{CACHE: cache}, **no_pad)

        no_pad = {**GREEDY, "suppress_tokens": [PAD]}
        unpatched, patched = both(shared("llama"), call, "sample_only")
        assert torch.equal(unpatched, patched)
        with ak.patched(shared("llama"), MODES) as model:
            call(model)
            stats = ak.last_stats(model)
        assert type(stats.prefill_tokens) is int and stats.prefill_tokens == 2 * 4

    @pytest.mark.parametrize("chunk", [1, 3, 64])
    def test_prefill_in_chunks(self, chunk):
        arguments = {**padded_inputs(), **GREEDY, "prefill_chunk_size": chunk}
        unpatched, patched = both(shared("llama"), lambda m: m.generate(**arguments))
        assert torch.equal(unpatched, patched)

    @pytest.mark.parametrize("architecture", ["llama", "gpt2", "mamba", "qwen3_next"])
    def test_no_cache(self, architecture):
        arguments = {"input_ids": prompts(3, WIDTH), **GREEDY, "use_cache": False}
        unpatched, patched = both(shared(architecture), lambda m: m.generate(**arguments), "sample_only")
        assert torch.equal(unpatched, patched)
        with ak.patched(shared(architecture), MODES) as model:
            out = model.generate(**arguments, return_dict_in_generate=True, mode="slow")
        assert out.stats.kv_bytes_peak == 0 and (out.sequences[:, WIDTH] == SLOW).all()

    @pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt_oss", "mistral", "deepseek_v3", "lfm2"])
    def test_static_cache(self, architecture):
        # Twice: a resized or kept static cache would break the second call.
        arguments = {**padded_inputs(), **GREEDY, "cache_implementation": "static"}
        for _ in range(2):
            unpatched, patched = both(shared(architecture), lambda m: m.generate(**arguments), "sample_only")
            assert torch.equal(unpatched, patched)

    def test_static_cache_stats(self):
        with ak.patched(shared("llama"), MODES) as model:
            model.generate(prompts(3, WIDTH), cache_implementation="static", mode="fast", **GREEDY)
            stats = ak.last_stats(model)
        assert type(stats.prefill_tokens) is int and stats.prefill_tokens == 3 * WIDTH
        assert stats.kv_bytes_peak >= 2 * 2 * 3 * 2 * 8 * 4 * (WIDTH + NEW - 1)

    def test_continuation_of_rows_that_left(self):
        def call(model):
            ends = {"eos_token_id": EOS, "suppress_tokens": [EOS], "stopping_criteria": [RowLengths(WIDTH, [3, 8, 5])]}
            first = model.generate(prompts(3, WIDTH), return_dict_in_generate=True, **{**GREEDY, **ends})
            longer = torch.cat([first.sequences, prompts(3, 3, seed=5)], 1)
            mask = torch.ones_like(longer)
            arguments = {"attention_mask": mask, CACHE: first[CACHE], **GREEDY}
            return model.generate(longer, **arguments)

        unpatched, patched = both(shared("llama"), call, "sample_only")
        assert torch.equal(unpatched, patched)

    def test_sampled_continuation_with_huggingface_generator(self):
        def call(model, **ours):
            torch.manual_seed(3)
            arguments = {**GREEDY, "do_sample": True, "top_k": 0, **ours}
            first = model.generate(prompts(2, WIDTH), return_dict_in_generate=True, **arguments)
            return model.generate(first.sequences, **{CACHE: first[CACHE]}, **arguments)

        model = shared("llama")
        expected = call(model)
        with ak.patched(model, MODES):
            assert torch.equal(call(model, rng="hf"), expected)
