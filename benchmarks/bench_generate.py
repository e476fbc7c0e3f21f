"""A whole `generate` call, patched and unpatched.

A case is `workload-plan`. The model is a Qwen2 of random weights (hidden 256, 4 layers, 4 heads, 2 KV heads); rows end
by a criterion, so that their lengths are known. Peers: the unpatched model with dynamic and static cache, and Hugging
Face's continuous batching, whose process time includes the start of its manager and the pages of its cache. It forks a
prompt's samples and lets rows end by themselves, but is written for GPUs: on a CPU it takes minutes.
The sampled mixed batch takes ten minutes: unpatched sampling sorts the vocabulary for every row.
"""

from functools import partial

import pytest
import torch
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    StoppingCriteria,
)

import adapt_kernels as ak
from adapt_kernels.hf.compat import CACHE

EOS = 1
MODES = ak.Modes(fast=5, slow=6)
SAMPLED = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.95}
GREEDY = {"do_sample": False}
PLANS = {
    "patched": {},
    "patched-rows": {"kv_layout": "rows"},
    "unpatched": {},
    "unpatched-static": {"cache_implementation": "static", "disable_compile": True},
    "continuous": {},
}


class RowLengths(StoppingCriteria):
    """Row i ends after `lengths[i]` new tokens."""

    def __init__(self, prompt_length: int, lengths):
        self.lengths, self._prompt_length = torch.tensor(lengths), prompt_length

    def __call__(self, input_ids, scores, **kwargs):
        return (input_ids.shape[1] >= self.lengths + self._prompt_length).to(input_ids.device)


def mixed(vocab_size, short, long, **sampling):
    """56 rows of `short` new tokens and 8 of `long`, prompts of 32."""
    lengths = [short] * 56 + [long] * 8
    ends = {"stopping_criteria": [RowLengths(32, lengths)], "max_new_tokens": long, "eos_token_id": EOS}
    return vocab_size, {"input_ids": ids(64, 32), **ends, **sampling}


def group(prompt_length, new_tokens, **sampling):
    """4 prompts with 16 samples each."""
    ends = {"num_return_sequences": 16, "max_new_tokens": new_tokens, "eos_token_id": None}
    return 151936, {"input_ids": ids(4, prompt_length), **ends, **sampling}


def single(vocab_size, **sampling):
    """One row, 100 new tokens: nothing to save."""
    return vocab_size, {"input_ids": ids(1, 32), "max_new_tokens": 100, "eos_token_id": None, **sampling}


def ids(rows, length):
    return torch.randint(10, 1000, (rows, length), generator=torch.Generator().manual_seed(0))


WORKLOADS = {
    "single-greedy": lambda: single(32000, **GREEDY),
    "group-512": lambda: group(512, 16, **SAMPLED),
    "group-2048": lambda: group(2048, 16, **SAMPLED),
    "mixed-20-400-greedy": lambda: mixed(151936, 20, 400, **GREEDY),
    "mixed-20-400-sampled": lambda: mixed(151936, 20, 400, **SAMPLED),
}
ROUNDS = {"single-greedy": 7}


def build(vocab_size):
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
    ends = {"pad_token_id": 0, "eos_token_id": EOS, "bos_token_id": 2, "tie_word_embeddings": True}
    config = Qwen2Config(vocab_size=vocab_size, num_key_value_heads=2, max_position_embeddings=4096, **sizes, **ends)
    return Qwen2ForCausalLM(config).eval()


def continuous(model, input_ids, num_return_sequences=1, max_new_tokens=None, stopping_criteria=(), **settings):
    """The same call by continuous batching, every prompt a request: new tokens of all samples.

    Pages for 64 rows of the longest workload: left to itself it takes most of the machine's memory.
    """
    pages = ContinuousBatchingConfig(page_size=256, num_blocks=640, max_batch_tokens=2048)
    settings |= {"eos_token_id": -1, "pad_token_id": 0, "num_return_sequences": num_return_sequences}
    config = GenerationConfig(max_new_tokens=max_new_tokens, **settings)
    lengths = [max_new_tokens] * len(input_ids)
    for criterion in stopping_criteria:
        lengths = criterion.lengths.tolist()
    hints = {"generation_config": config, "continuous_batching_config": pages, "warmup": False, "timeout": 5}
    with model.continuous_batching_context_manager(**hints) as manager:
        for prompt, length in zip(input_ids.tolist(), lengths, strict=True):
            manager.add_request(prompt, max_new_tokens=length, eos_token_id=-1)
        done = []
        while len(done) < len(lengths) * num_return_sequences:
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                assert result.error is None, result.error
                done.append(len(result.generated_tokens))
            assert result is not None or manager.is_running(), "its thread has ended"
    return sum(done)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_generate(benchmark, workload, plan):
    if plan == "unpatched-static" and workload == "mixed-20-400-sampled":
        pytest.skip("what the cache costs shows in the greedy one; this would take another ten minutes")
    if plan == "patched-rows" and not workload.startswith("group"):
        pytest.skip("no prompt is shared")
    vocab_size, call = WORKLOADS[workload]()
    model = build(vocab_size)
    if plan.startswith("patched"):
        ak.patch(model, MODES)
    # The native sampler compiles on first use.
    if plan != "continuous":
        model.generate(**{**call, "max_new_tokens": 2, "stopping_criteria": None}, **PLANS[plan])
    torch.manual_seed(0)
    asked = {"return_dict_in_generate": True, **PLANS[plan]}
    generate = partial(continuous, model) if plan == "continuous" else partial(model.generate, **asked)
    out = benchmark.pedantic(generate, kwargs=call, rounds=ROUNDS.get(workload, 1), iterations=1)
    if plan == "continuous":
        benchmark.extra_info["new_tokens"] = out
        return
    benchmark.extra_info["new_tokens"] = int((out.sequences[:, call["input_ids"].shape[1] :] != 0).sum())
    if plan.startswith("unpatched"):
        benchmark.extra_info["kv_bytes_peak"] = sum(
            tensor.nbytes for layer in out[CACHE].layers for tensor in (layer.keys, layer.values)
        )
    else:
        assert out.stats.plan == "full"
        names = ("row_steps", "row_steps_padded", "prefill_tokens", "kv_bytes_peak")
        benchmark.extra_info |= {name: getattr(out.stats, name) for name in names}
