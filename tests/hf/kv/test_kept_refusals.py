"""What `generate(kv_keep=)` refuses, and with which words: before anything is computed, or before anything is lost."""

import inspect

import pytest
import torch
from parity import CACHE, GREEDY, MODES, padded_inputs
from tiny_models import build, shared
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, StaticCache

import adapt_kernels as ak

CALL = GREEDY | {"max_new_tokens": 22}
SMALL = ak.KeepKV(8, 0.5, 3)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"num_beams": 2}, "kv_keep cannot be honoured by this call: beam search has its own decoding loop"),
        ({"cache_implementation": "static"}, "kv_keep cannot serve this call: StaticCache, offloaded"),
        ({"use_cache": False}, "kv_keep cannot serve this call: there is no cache to branch"),
        ({"rng": "hf", "do_sample": True}, "kv_keep cannot serve this call: rng='hf' draws"),
        (
            {"output_attentions": True, "return_dict_in_generate": True},
            "kv_keep cannot serve this call: output_attentions shows",
        ),
        ({"kv_keep": {"budget": 8}}, "kv_keep must be an adapt_kernels.KeepKV; got {'budget': 8}"),
        (
            {"kv_keep": ak.KeepKV(8, 0.5, 3, count="all")},
            "got a prompt of 8 positions and budget=8",
        ),
        (
            {"kv_keep": ak.KeepKV(12, 6, 3, count="all")},
            "its 8 positions do not fit the 6 that are held after an eviction",
        ),
        (
            {"kv_keep": ak.KeepKV(12, 9, 3, count="all"), "kv_layout": "shared"},
            "kv_layout='shared' cannot serve this call: kv_keep with count='all'",
        ),
    ],
)
def test_before_the_prefill(arguments, text):
    model = build("llama", attn_implementation="eager")
    forwards = []
    model.register_forward_hook(lambda *_: forwards.append(1))
    call = {**padded_inputs(), **CALL, "kv_keep": SMALL, **arguments}
    with ak.patched(model, MODES), pytest.raises((ValueError, TypeError), match=text):
        model.generate(**call)
    assert not forwards


def test_caches_of_the_caller():
    model = build("llama")
    for given in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=64)):
        with ak.patched(model, MODES), pytest.raises(ValueError, match="kv_keep cannot serve this call: "):
            model.generate(**padded_inputs(), **CALL, kv_keep=SMALL, **{CACHE: given})


@pytest.mark.parametrize(
    ("architecture", "settings", "text"),
    [
        ("mistral", SMALL, "it has no full-attention layer"),
        ("mamba", SMALL, "it has no full-attention layer"),
        ("falcon_h1", SMALL, "LinearAttentionAndFullAttentionLayer are not known to drop positions"),
        ("bloom", SMALL, "BloomForCausalLM takes no position_ids"),
        ("recurrent_gemma", SMALL, "recurrent_gemma keeps its state on its modules"),
        ("falcon", ak.KeepKV(8, 0.5, 3, "snap"), "FalconForCausalLM does not take attention functions"),
    ],
)
def test_models(architecture, settings, text):
    text = f"kv_keep cannot serve this call: .*{text}"
    with ak.patched(shared(architecture), MODES) as model, pytest.raises(ValueError, match=text):
        model.generate(**padded_inputs(), **CALL, kv_keep=settings)


@pytest.mark.parametrize("fault", ["alibi", "length"])
def test_models_that_tell_positions_from_the_cache(fault):
    model = build("llama")
    if fault == "length":

        def forward(*args, position_ids=None, **kwargs):
            kv_cache = kwargs.get(CACHE)
            past = kv_cache.get_seq_length() if kv_cache is not None else 0
            ids = kwargs["input_ids"]
            return original(*args, position_ids=(past + torch.arange(ids.shape[1]))[None], **kwargs)

        original = type(model).forward.__get__(model)
    else:

        def biased(module, query, key, value, attention_mask, **settings):
            bias = torch.arange(key.shape[2]) * 0.3
            mask = bias.expand(len(key), 1, query.shape[2], -1)
            mask = mask if attention_mask is None else mask.masked_fill(~attention_mask, -1e9)
            return AttentionInterface()["sdpa"](module, query, key, value, mask, **settings)

        AttentionInterface.register("biased_by_index", ak.row_independent(biased))
        AttentionMaskInterface.register("biased_by_index", AttentionMaskInterface()["sdpa"])
        model.set_attn_implementation("biased_by_index")
    if fault == "length":
        kind = type("ByLength", (type(model),), {"forward": lambda self, **given: forward(**given)})
        kind.forward.__signature__ = inspect.signature(type(model).forward)
        model.__class__ = kind
    text = "reads from the order or number of cached positions"
    with ak.patched(model, MODES), pytest.raises(ValueError, match=text):
        model.generate(**padded_inputs(), **CALL, kv_keep=SMALL)
