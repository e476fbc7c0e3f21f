"""A whole `generate` call of 4 prompts x 16 samples of 400 tokens, of which 4 a prompt live on after 64.

V = 151936; the model is a Qwen2 of random weights (hidden 256, 4 layers, 4 heads, 2 KV heads). Peers: the same patched
call without paths, and the unpatched model, whose sampling sorts the vocabulary for every row: it takes ten minutes.
"""

import pytest
import torch
from bench_generate import MODES, SAMPLED, build, ids

import adapt_kernels as ak

KEEP, AT = 4, 64
CALL = {"num_return_sequences": 16, "max_new_tokens": 400, "eos_token_id": None, "pad_token_id": 0, **SAMPLED}
POLICIES = {
    "unpatched": None,
    "unpruned": None,
    "random": lambda model: "random",
    "confidence": lambda model: "confidence",
    "scorer": lambda model: ak.PrefixScorer(model, rank=16),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_paths(benchmark, policy):
    model, more = build(151936), {}
    if policy != "unpatched":
        ak.patch(model, MODES)
        more["seed"] = 0
    if POLICIES[policy] is not None:
        more["paths"] = ak.Paths(KEEP, AT, score=POLICIES[policy](model))
    call = {"input_ids": ids(4, 32), "return_dict_in_generate": True, **CALL, **more}
    # The native sampler compiles on first use.
    model.generate(**{**call, "max_new_tokens": 2})
    torch.manual_seed(0)
    out = benchmark.pedantic(model.generate, kwargs=call, rounds=1, iterations=1)
    if policy != "unpatched":
        assert out.stats.plan == "full"
        names = ("row_steps", "row_steps_padded", "kv_bytes_peak", "tokens_saved", "score_tokens")
        benchmark.extra_info |= {name: getattr(out.stats, name) for name in names}
