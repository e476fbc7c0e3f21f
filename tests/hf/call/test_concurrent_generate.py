"""Calls inside calls, calls beside calls, and unpatch while one runs."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from recorders import CallbackStreamer
from tiny_models import FAST, SLOW, build, prompts, shared
from transformers import LlamaForCausalLM, LogitsProcessor

import adapt_kernels as ak

MODES = ak.Modes(fast=FAST, slow=SLOW)
WIDTH, NEW = 6, 8
SAMPLED = {"max_new_tokens": NEW, "do_sample": True, "top_k": 0, "eos_token_id": None}


def test_unpatch_inside_a_running_call(patched_llama):
    message = "unpatch was called while generate is running on this model; call it afterwards"
    with pytest.raises(RuntimeError, match=message):
        patched_llama.generate(
            prompts(1, WIDTH), max_new_tokens=4, streamer=CallbackStreamer(lambda: ak.unpatch(patched_llama))
        )
    assert (patched_llama.generate(prompts(1, WIDTH), max_new_tokens=4, mode="slow")[:, WIDTH] == SLOW).all()
    ak.unpatch(patched_llama)
    assert type(patched_llama) is LlamaForCausalLM


def test_unpatch_inside_a_running_original_call(patched_llama):
    def loop(model, input_ids, **kwargs):
        ak.unpatch(model)

    with pytest.raises(RuntimeError, match="while generate is running"):
        patched_llama.generate(prompts(1, WIDTH), max_new_tokens=4, custom_generate=loop)


def test_patching_again_inside_a_running_call_is_allowed_only_with_the_same_modes(patched_llama):
    streamer = CallbackStreamer(lambda: ak.patch(patched_llama, MODES))
    patched_llama.generate(prompts(1, WIDTH), max_new_tokens=3, streamer=streamer)
    streamer = CallbackStreamer(lambda: ak.patch(patched_llama, ak.Modes(a=7, b=8)))
    with pytest.raises(ValueError, match="call unpatch"):
        patched_llama.generate(prompts(1, WIDTH), max_new_tokens=3, streamer=streamer)


class Nesting(LogitsProcessor):
    """Calls `generate` at every step and keeps what came back."""

    def __init__(self, call):
        self.call, self.results = call, []

    def __call__(self, input_ids, scores):
        self.results.append(self.call())
        return scores


@pytest.mark.parametrize("outer", [{"mode": "slow"}, {"fast_prob": 0.5}, {}, {"mode_bias": 1.0, "rng": "hf"}])
def test_a_call_inside_a_call(outer):
    with ak.patched(shared("llama"), MODES) as model:

        def inner():
            return model.generate(prompts(2, 4, seed=1), mode="fast", seed=9, **SAMPLED)

        seed = {} if "rng" in outer else {"seed": 3}
        torch.manual_seed(0)
        expected = model.generate(prompts(3, WIDTH), **outer, **seed, **SAMPLED)
        expected_inner, nesting = inner(), Nesting(inner)
        torch.manual_seed(0)
        got = model.generate(
            prompts(3, WIDTH), **outer, **seed, **SAMPLED, logits_processor=[nesting], return_dict_in_generate=True
        )
        assert torch.equal(got.sequences, expected)
        assert len(nesting.results) == NEW and all(torch.equal(r, expected_inner) for r in nesting.results)
        assert ak.last_stats(model) is got.stats, "the outer call finished last"


def test_a_call_of_another_patched_model_inside_a_call():
    other = ak.patch(build("llama", seed=5), ak.Modes(a=20, b=21, c=22))
    with ak.patched(shared("llama"), MODES) as model:
        nesting = Nesting(lambda: other.generate(prompts(2, 4), mode="c", seed=1, **SAMPLED))
        expected = model.generate(prompts(3, WIDTH), mode="slow", seed=3, **SAMPLED)
        got = model.generate(prompts(3, WIDTH), mode="slow", seed=3, logits_processor=[nesting], **SAMPLED)
    assert torch.equal(got, expected)
    assert all((r[:, 4] == 22).all() for r in nesting.results)


def test_a_failed_call_inside_a_call():
    with ak.patched(shared("llama"), MODES) as model:

        def refused():
            with pytest.raises(ValueError, match="unknown mode"):
                model.generate(prompts(2, 4), mode="medium", **SAMPLED)

        expected = model.generate(prompts(3, WIDTH), mode="slow", seed=3, **SAMPLED)
        got = model.generate(prompts(3, WIDTH), mode="slow", seed=3, logits_processor=[Nesting(refused)], **SAMPLED)
    assert torch.equal(got, expected)


KNOBS = [
    {"mode": "slow", "seed": 1},
    {"mode": "fast", "seed": 2},
    {"seed": 3},
    {"fast_prob": 0.5, "seed": 4, "return_dict_in_generate": True},
    {"num_beams": 2, "do_sample": False},
]


def tokens(out):
    return out if torch.is_tensor(out) else out.sequences


def test_threads_on_one_model(patched_llama):
    def call(row, **extra):
        return patched_llama.generate(prompts(3, WIDTH, seed=row), **{**SAMPLED, **KNOBS[row]}, **extra)

    expected = [tokens(call(row)) for row in range(len(KNOBS))]
    # All calls take every step together, so their states overlap for sure.
    barrier = threading.Barrier(len(KNOBS), timeout=60)

    class Together(LogitsProcessor):
        def __call__(self, input_ids, scores):
            barrier.wait()
            return scores

    with ThreadPoolExecutor(len(KNOBS)) as pool:
        futures = [pool.submit(call, row, logits_processor=[Together()]) for row in range(len(KNOBS))]
        got = [tokens(future.result(timeout=120)) for future in futures]
    for ours, alone in zip(got, expected, strict=True):
        assert torch.equal(ours, alone)
    ak.unpatch(patched_llama)
    assert type(patched_llama) is LlamaForCausalLM


def test_inference_mode(patched_llama):
    with torch.inference_mode():
        inside = patched_llama.generate(prompts(2, WIDTH), mode_bias=0.5, seed=1, **SAMPLED)
    assert torch.equal(patched_llama.generate(prompts(2, WIDTH), mode_bias=0.5, seed=1, **SAMPLED), inside)


def test_unpatch_from_another_thread_while_a_call_runs(patched_llama):
    errors = []

    def unpatch():
        thread = threading.Thread(target=lambda: errors.append(pytest.raises(RuntimeError, ak.unpatch, patched_llama)))
        thread.start()
        thread.join()

    patched_llama.generate(prompts(1, WIDTH), max_new_tokens=3, streamer=CallbackStreamer(unpatch))
    assert len(errors) == 3 and "while generate is running" in str(errors[0].value)
    ak.unpatch(patched_llama)
