"""The plan of a call: why it is what it is, and what a change of mind during the call leaves in the stats."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from tiny_models import FAST, SLOW, VOCAB, build, prompts, read_its_cache, shared
from transformers import AutoConfig, AutoModelForCausalLM

import adapt_kernels as ak
from adapt_kernels.hf.kv import layouts
from adapt_kernels.hf.plan import Plan

MODES = ak.Modes(fast=FAST, slow=SLOW)
CALL = {"max_new_tokens": 3, "do_sample": True, "eos_token_id": None, "seed": 1, "pad_token_id": 0}


def stats(model, **more):
    with ak.patched(model, MODES):
        model.generate(prompts(2, 6), **{**CALL, **more})
        return ak.last_stats(model)


def test_a_change_of_mind_is_another_plan():
    first = Plan()
    with pytest.raises(FrozenInstanceError):
        first.name = "full"
    full = first.begun()
    assert (first.undecided, full.full, full.layout) == (True, True, "shared")
    assert full.with_rows("of a test") == replace(full, layout="rows", layout_reason="of a test")
    lower = full.keeping_the_batch("no cache").without_appending("no cache")
    assert lower == Plan("sample_only", "no cache", no_append="no cache") and full.full
    assert first.left_to_huggingface("beams") == Plan("original", "beams") and lower.reason == "no cache"


@pytest.mark.parametrize(
    "more, layout, reason",
    [
        ({"kv_layout": "rows", "num_return_sequences": 2}, "rows", "kv_layout='rows'"),
        ({}, "rows", "no rows share a prompt"),
        ({"num_return_sequences": 2}, "rows", "reading the prompts' copies costs less here"),
        ({"kv_layout": "shared", "num_return_sequences": 2}, "shared", ""),
        ({"rng": "hf", "seed": None}, None, ""),
    ],
)
def test_the_layout_is_reported_with_its_reason(more, layout, reason):
    found = stats(shared("llama"), **more)
    assert (found.kv_layout, found.kv_layout_reason) == (layout, reason)


def test_a_layout_given_up_in_the_first_step_is_reported(monkeypatch):
    monkeypatch.setattr(layouts, "_WORTH_SHARING", 0)
    model = read_its_cache(build("llama"), monkeypatch)
    found = stats(model, num_return_sequences=3)
    assert (found.plan, found.kv_layout) == ("full", "rows")
    assert found.kv_layout_reason == "LlamaForCausalLM's attention reads its cache by itself"


def test_a_prefill_that_shows_no_cache_changes_the_plan_and_its_reason():
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": VOCAB}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("openai-gpt", **sizes)).eval()
    found = stats(model, num_return_sequences=2)
    assert (found.plan, found.reason, found.kv_layout) == ("sample_only", "the model's output carries no cache", None)
