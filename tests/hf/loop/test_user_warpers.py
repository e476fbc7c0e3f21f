"""A user's own warpers: what the fused sampler cannot do is done by the warper itself."""

import pytest
import torch
from tiny_models import FAST, SLOW, prompts, shared
from transformers.generation import logits_process as lp

import adapt_kernels as ak
from adapt_kernels.hf.loop.processors import split

MODES = ak.Modes(fast=FAST, slow=SLOW)
# No temperature: Hugging Face's warper would come last, and only the built-in order is fused.
DRAWN = {"do_sample": True, "top_k": 0, "max_new_tokens": 1, "eos_token_id": None}
KEEPING_MORE = {
    "top_p": lambda: lp.TopPLogitsWarper(0.001, min_tokens_to_keep=3),
    "min_p": lambda: lp.MinPLogitsWarper(0.999, min_tokens_to_keep=2),
    "top_p_of_two": lambda: lp.TopPLogitsWarper(0.001, min_tokens_to_keep=2),
}
OTHER_VALUE = {
    "top_k": lambda: lp.TopKLogitsWarper(2, filter_value=0.0),
    "top_p": lambda: lp.TopPLogitsWarper(0.001, filter_value=0.0),
    "min_p": lambda: lp.MinPLogitsWarper(0.999, filter_value=0.0),
}


def drawn_and_possible(warper) -> tuple[set, set]:
    """First tokens of 1000 rows, and those that Hugging Face's own scores leave."""
    model, ids = shared("qwen3"), prompts(1, 6)
    arguments = {**DRAWN, "logits_processor": [warper]}
    rich = {"return_dict_in_generate": True, "output_scores": True}
    scores = model.generate(ids, **arguments, **rich).scores[0][0]
    with ak.patched(model, MODES):
        tokens = model.generate(ids, **arguments, num_return_sequences=1000, seed=5)[:, -1]
    return set(tokens.tolist()), set(torch.isfinite(scores).nonzero()[:, 0].tolist())


@pytest.mark.parametrize("name", KEEPING_MORE)
def test_min_tokens_to_keep(name):
    warper = KEEPING_MORE[name]()
    drawn, possible = drawn_and_possible(warper)
    assert len(possible) == warper.min_tokens_to_keep
    assert drawn == possible


@pytest.mark.parametrize("name", OTHER_VALUE)
def test_filter_value(name):
    """Tokens that are only made less likely are still drawn."""
    drawn, possible = drawn_and_possible(OTHER_VALUE[name]())
    assert len(possible) == 97 and len(drawn) > 20


def test_only_plain_warpers_are_fused():
    plain = [lp.TopKLogitsWarper(5), lp.TopPLogitsWarper(0.9), lp.MinPLogitsWarper(0.1)]
    assert split(plain).fused == {"top_k": 5, "top_p": 0.9, "min_p": 0.1}
    for warper in [make() for make in (*KEEPING_MORE.values(), *OTHER_VALUE.values())]:
        assert split([warper]).fused is None
    assert split([plain[1], plain[0]]).fused is None  # another order
    assert split([plain[0], plain[0]]).fused is None  # twice
