"""`generate` on a GPU: the tokens of the same call on the CPU. Float32, where only near ties could differ."""

import pytest
import torch
from path_calls import PROGRAM
from tiny_models import EOS, FAST, PAD, SLOW, build, left_padded, prompts

import adapt_kernels as ak

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]

MODES = ak.Modes(fast=FAST, slow=SLOW)
GROUP = {"num_return_sequences": 4, "do_sample": True, "seed": 3}
GREEDY = {"do_sample": False, "seed": 3}
THINK = {"think": {"open": SLOW, "close": 9, "breaks": 7}}
RULES = [
    {"force": [20, 9], "when": {"in": "think", "count": [6, None]}},
    {"bias": [11, 12, 13], "by": "ban", "when": {"in": "think"}},
    {"sample": {"temperature": 0.5}, "when": {"in": "think", "if": {"entropy": [0.5, None]}}},
    {"bias": [30, 31], "by": 2.0, "when": {"after": 3}, "hold": 2, "p": 0.5},
]
EVERY_RULE = ak.Program.from_dict({"spans": THINK, "rules": RULES})
CASES = {
    "greedy": GREEDY,
    "sampled": GROUP,
    "filters": {**GROUP, "temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.01},
    "modes": {**GROUP, "fast_prob": 0.5},
    "balanced": {**GROUP, "mode": "balanced"},
    "bias": {**GROUP, "mode_bias": 2.0},
    "rows": {**GROUP, "kv_layout": "rows"},
    "shared": {**GROUP, "kv_layout": "shared"},
    "compacted": {**GROUP, "compact_at": 1.0, "fast_prob": 0.5},
    "forced": {**GROUP, "program": PROGRAM},
    "program": {**GROUP, "mode": "slow", "program": EVERY_RULE},
    "program, greedy": {**GREEDY, "mode": "slow", "program": EVERY_RULE},
    "log-probs": {**GROUP, "return_logprobs": True, "temperature": 0.7},
    "processors": {**GROUP, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "paths": {**GROUP, "paths": ak.Paths(keep=0.5, at=6)},
    "paths, halving": {**GROUP, "paths": ak.Paths(keep=0.5, at=(4, 12), score="logprob")},
    "paths, agree": {**GROUP, "paths": ak.Paths(agree=ak.Agree(k=2, answer=lambda ids: int(ids[-1]) % 3))},
    **{
        f"keep {score}, {layout}": {**GROUP, "kv_layout": layout, "kv_keep": ak.KeepKV(9, 0.4, 4, score)}
        for score in ("recent", "random", "key_norm", "value_norm", "key_diff", "snap", "tova", "r_kv")
        for layout in ("rows", "shared")
    },
}


def called(device, architecture, new, **settings):
    """The output of one call of a patched model on the device."""
    model = build(architecture).to(device)
    inputs = {name: tensor.to(device) for name, tensor in left_padded(prompts(3, 8), [8, 5, 6]).items()}
    call = {**settings, "max_new_tokens": new, "return_dict_in_generate": True, "pad_token_id": PAD}
    with ak.patched(model, MODES):
        return model.generate(**inputs, **call, eos_token_id=EOS)


def same(architecture, new=40, **settings):
    here, there = (called(device, architecture, new, **settings) for device in ("cpu", "cuda"))
    assert torch.equal(here.sequences, there.sequences.cpu())
    assert here.stats.plan == there.stats.plan
    for name in ("logprobs", "path_scores"):
        one, other = here.get(name), there.get(name)
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(other.cpu(), one, atol=1e-3, rtol=1e-3, equal_nan=True)
    return here, there


@pytest.mark.parametrize("name", CASES)
def test_the_tokens_of_the_cpu(name):
    same("llama", **CASES[name])


@pytest.mark.parametrize("name", ["greedy", "sampled", "modes", "compacted", "program", "log-probs", "paths"])
def test_forwards_replayed_from_a_graph(name):
    _, there = same("llama", **{**CASES[name], "kv_layout": "rows", "cuda_graph": "auto"})
    assert there.stats.graph_replays > 0, there.stats.graph_reason


@pytest.mark.parametrize("name", ["sampled", "program", "paths", "keep recent, rows"])
@pytest.mark.parametrize("architecture", ["gemma3_text", "gpt2", "gpt_oss", "qwen3"])
def test_other_architectures(architecture, name):
    same(architecture, **CASES[name])


def test_a_long_call():
    """Segments grow, rows end at different times, and stop flags arrive a step late."""
    here, there = same("llama", 200, **GROUP, suppress_tokens=[7])
    assert here.stats.row_steps <= there.stats.row_steps <= here.stats.row_steps + len(here.sequences)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_and_repeats(dtype):
    model = build("llama").to("cuda", dtype)
    ids = prompts(2, 8).to("cuda")
    with ak.patched(model, MODES):
        one, other = (model.generate(ids, max_new_tokens=60, **GROUP) for _ in range(2))
    assert torch.equal(one, other)
