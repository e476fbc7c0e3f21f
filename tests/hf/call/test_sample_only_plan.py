"""Calls that keep Hugging Face's cache and batch: the plan, and the reason in the stats."""

import pytest
import torch
from parity import CACHE, GREEDY, MODES, WIDTH, both, padded_inputs
from tiny_models import build, prompts, shared
from transformers import DynamicCache

import adapt_kernels as ak


class TestReasons:
    """What keeps a call off plan "full" is said in the stats."""

    CASES = {
        "rng='hf' draws for the whole batch": {"rng": "hf"},
        "output_scores shows what finished rows compute": {"output_scores": True, "return_dict_in_generate": True},
        "PrefixConstrainedLogitsProcessor may depend on the place": {"prefix_allowed_tokens_fn": lambda row, ids: [9]},
        "there is no cache to branch": {"use_cache": False},
        "StaticCache, offloaded, quantized or static": {"cache_implementation": "static"},
        f"{CACHE} was given": {CACHE: True},
        "model input 'extra' may hold rows": {"extra": torch.zeros(3)},
    }

    @pytest.mark.parametrize("reason", CASES)
    def test_is_named(self, reason):
        arguments = dict(self.CASES[reason])
        model = build("llama")
        if CACHE in arguments:
            arguments[CACHE] = DynamicCache(config=model.config)
        if "extra" in arguments:
            # A model whose forward takes more inputs than llama's.
            model._validate_model_kwargs = lambda kwargs: None
        with ak.patched(model, MODES):
            model.generate(**padded_inputs(), **GREEDY, **arguments)
            stats = ak.last_stats(model)
        assert stats.plan == "sample_only" and reason in stats.reason

    def test_training_mode(self):
        # Trainers generate in it; without dropout it makes no difference.
        for rate, plan in ((0.0, "full"), (0.1, "sample_only")):
            with ak.patched(build("llama", attention_dropout=rate).train(), MODES) as model:
                model.generate(**padded_inputs(), **GREEDY)
                stats = ak.last_stats(model)
                assert stats.plan == plan and ("dropout" in stats.reason) == (rate > 0)

    def test_position_ids_for_all_rows_at_once(self):
        arguments = {"input_ids": prompts(3, WIDTH), "position_ids": torch.arange(WIDTH)[None], **GREEDY}
        unpatched, patched = both(shared("llama"), lambda m: m.generate(**arguments), "sample_only")
        assert torch.equal(unpatched, patched)
