"""Tokens per second of whole `generate` calls on real models, patched and unpatched, greedy and sampled.

A case is `model-rows-sampling-peer`. Every row makes the same number of tokens, so nothing is saved by rows that end
early: what differs is the sampler and the loop.
"""

from functools import cache

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import adapt_kernels as ak
import adapt_recipes as ar
from adapt_recipes import smollm2

NEW_TOKENS = 16
PROMPT = {"shipped": ar.problems(1, difficulty=4, seed=0)[0].prompt, "smollm2": "The square root of 144 is"}
SAMPLING = {"greedy": {"do_sample": False}, "sampled": {"temperature": 0.7, "top_k": 20, "top_p": 0.95}}
SAMPLING["nucleus"] = {"temperature": 0.7, "top_k": 0, "top_p": 0.95}


@cache
def load(name):
    """Model, prompt ids and modes; SmolLM2 has no modes of its own, any two ids do for timing."""
    if name == "smollm2" and not (smollm2.default_directory() / "model.safetensors").is_file():
        pytest.skip("SmolLM2 is not here: run `adapt fetch-smollm2`")
    folder = ar.checkpoint_path("sft") if name == "shipped" else smollm2.default_directory()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if name == "shipped":
        modes = ak.Modes.from_tokenizer(tokenizer, fast="<answer>", slow="<think>")
    else:
        modes = ak.Modes(fast=5, slow=6)
    return model, tokenizer(PROMPT[name], return_tensors="pt").input_ids, modes


@pytest.mark.parametrize("peer", ["adapt_kernels", "huggingface"])
@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("rows", [1, 16, 64], ids=lambda rows: f"rows{rows}")
@pytest.mark.parametrize("model", ["shipped", "smollm2"])
def test_tokens_per_second(measure, model, rows, sampling, peer):
    model, ids, modes = load(model)
    arguments = {"do_sample": True, "max_new_tokens": NEW_TOKENS, "eos_token_id": None, "pad_token_id": 0}
    arguments |= SAMPLING[sampling]
    if sampling == "greedy":
        arguments |= {"temperature": None, "top_k": None, "top_p": None}
    ids = ids.repeat(rows, 1)
    if peer == "huggingface":
        ak.unpatch(model)
    else:
        ak.patch(model, modes)
    measure(lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **arguments))
