"""A whole greedy `generate` call of SmolLM2 with its shipped adapter at real mixed lengths, patched and unpatched.

64 unseen questions of all levels; each prompt ends in its mode token, `<answer>` and `<think>` in turn, so that every
peer does the same work and every row ends by itself. Peers: the unpatched model, and Hugging Face's continuous batching
as in bench_generate.py. ADAPT_BENCH_ADAPTER names the folder of another adapter.
"""

import os
from functools import partial

import pytest
from bench_generate import PLANS
from transformers import ContinuousBatchingConfig, GenerationConfig

import adapt_kernels as ak
from adapt_recipes.evaluation.frontier import spread_problems
from adapt_recipes.evaluation.generate import count_tokens, encode
from adapt_recipes.models import load, load_modes, model_folder

ROWS = 64
NAME = os.environ.get("ADAPT_BENCH_ADAPTER", "smollm2-sft")


@pytest.fixture(scope="module")
def workload():
    """Model, modes, padded inputs and the longest answer."""
    try:
        folder = model_folder(NAME)
        model, tokenizer = load(folder)
    except (ValueError, RuntimeError) as error:
        pytest.skip(str(error))
    modes = load_modes(folder, tokenizer, None, None)
    chosen = spread_problems("idle_words", ROWS, seed=9)[:ROWS]
    encoded = encode(tokenizer, [problem.prompt for problem in chosen])
    prompts = [ids[mask.bool()].tolist() for ids, mask in zip(*encoded.values(), strict=True)]
    prompts = [[*ids, modes.token_ids[i % 2]] for i, ids in enumerate(prompts)]
    inputs = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    return model, modes, dict(inputs), model.generation_config.max_new_tokens


def continuous(model, inputs, new_tokens):
    """New tokens of all rows, each a request."""
    eos, pad = model.generation_config.eos_token_id, model.generation_config.pad_token_id
    config = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=eos, pad_token_id=pad)
    pages = ContinuousBatchingConfig(page_size=256, num_blocks=2 * ROWS, max_batch_tokens=2048)
    hints = {"generation_config": config, "continuous_batching_config": pages, "warmup": False, "timeout": 5}
    prompts = [
        ids[mask.bool()].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]
    lengths = []
    with model.continuous_batching_context_manager(**hints) as manager:
        for prompt in prompts:
            manager.add_request(prompt, max_new_tokens=new_tokens)
        while len(lengths) < len(prompts):
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                assert result.error is None, result.error
                lengths.append(len(result.generated_tokens))
            assert result is not None or manager.is_running(), "its thread has ended"
    return sum(lengths)


@pytest.mark.parametrize("plan", ["patched", "unpatched", "continuous"])
def test_words(benchmark, workload, plan):
    model, modes, inputs, new_tokens = workload
    ak.unpatch(model)
    if plan == "patched":
        ak.patch(model, modes)
    if plan == "continuous":
        benchmark.extra_info["new_tokens"] = benchmark.pedantic(continuous, (model, inputs, new_tokens), rounds=1)
        return
    generate = partial(model.generate, **inputs, do_sample=False, return_dict_in_generate=True, **PLANS[plan])
    generate(max_new_tokens=2)  # the native sampler compiles on first use
    out = benchmark.pedantic(generate, rounds=1)
    lengths = count_tokens(out.sequences[:, inputs["input_ids"].shape[1] :], model.generation_config.eos_token_id)
    benchmark.extra_info |= {"new_tokens": sum(lengths), "longest": max(lengths)}
    if plan == "patched":
        assert out.stats.plan == "full"
        names = ("row_steps", "row_steps_padded", "prefill_tokens", "kv_bytes_peak")
        benchmark.extra_info |= {name: getattr(out.stats, name) for name in names}
