"""One call on the unpatched and on the patched model, and the comparison of what comes out."""

import torch
from tiny_models import FAST, SLOW, left_padded, prompts
from transformers.generation.utils import GenerateDecoderOnlyOutput

import adapt_kernels as ak

MODES = ak.Modes(fast=FAST, slow=SLOW)
WIDTH, NEW = 8, 9
GREEDY = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
# The name of the cache among arguments and outputs, by release.
CACHE = "cache" if "cache" in GenerateDecoderOnlyOutput.__dataclass_fields__ else "past_key_values"


def padded_inputs():
    return left_padded(prompts(3, WIDTH), [8, 3, 6])


ROWS = 6


def six_rows(**more):
    """generate's arguments: equal prompts, and rows that end at different steps, so both plans have some to move."""
    ids = prompts(3, WIDTH)[[0, 1, 0, 2, 1, 0]]
    inputs = left_padded(ids, [8, 5, 8, 6, 5, 8])
    return {**inputs, **GREEDY, "eos_token_id": list(range(3, 20)), "pad_token_id": 0} | more


def both(model, call, plan="full"):
    """call(model) on the unpatched and on the patched model; the latter must take `plan`."""
    unpatched = call(model)
    with ak.patched(model, MODES):
        patched = call(model)
        assert ak.last_stats(model).plan == plan
    return unpatched, patched


def assert_same(ours, theirs):
    """Equal nested tuples of tensors."""
    assert type(ours) is type(theirs)
    if isinstance(theirs, tuple):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b)
    elif theirs is not None:
        assert torch.equal(ours, theirs)


def cached(cache):
    """[(keys, values)] of every layer."""
    return [(layer.keys, layer.values) for layer in cache.layers]
