"""calibrate gives what `generate` gives, wherever a setting comes from that reshapes the gate."""

import pytest
import torch
from tiny_models import EOS, FAST, PAD, SLOW, build, left_padded, prompts, shared
from transformers import GenerationConfig, LogitsProcessor, TemperatureLogitsWarper

import adapt_kernels as ak

MODES = ak.Modes(fast=FAST, slow=SLOW)
THREE = ak.Modes(fast=FAST, slow=SLOW, tool=40)
OTHER = ak.Modes(fast=FAST, slow=None)
LONG = ak.Modes(fast=(7, FAST, 9), slow=(7, SLOW))
SAMPLED = {"do_sample": True, "max_new_tokens": 3, "top_k": 0}


class PushesFast(LogitsProcessor):
    """Adds a number of its own to each prompt's logit of mode 0."""

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        scores[:, FAST] += (input_ids[:, 0] % 7).float()
        return scores


def config(**settings):
    return GenerationConfig(pad_token_id=PAD, eos_token_id=EOS, **settings)


# name: (modes, settings)
CASES = {
    "generation_config=": (MODES, lambda: {"generation_config": config(do_sample=True, temperature=0.4, top_k=0)}),
    "keyword over generation_config=": (
        *(MODES,),
        lambda: {"generation_config": config(do_sample=True, temperature=0.4, top_k=0), "temperature": 2.5},
    ),
    "repetition penalty": (MODES, lambda: {**SAMPLED, "repetition_penalty": 3.0}),
    "penalty from generation_config=": (
        *(MODES,),
        lambda: {"generation_config": config(do_sample=True, repetition_penalty=3.0, temperature=0.7)},
    ),
    "sequence bias": (MODES, lambda: {**SAMPLED, "sequence_bias": [[[FAST], 1.5]]}),
    "bias of a sequence that one prompt begins": (MODES, lambda: {**SAMPLED, "sequence_bias": [[[16, FAST], 4.0]]}),
    "processor": (MODES, lambda: {**SAMPLED, "logits_processor": [PushesFast()], "temperature": 0.6}),
    "warper of the caller's": (
        *(MODES,),
        lambda: {**SAMPLED, "logits_processor": [TemperatureLogitsWarper(0.5)], "temperature": 0.7},
    ),
    "filters": (MODES, lambda: {**SAMPLED, "top_k": 1, "top_p": 0.1, "min_p": 0.5}),
    "fast banned after one prompt": (MODES, lambda: {**SAMPLED, "bad_words_ids": [[16, FAST]]}),
    "slow banned after one prompt": (MODES, lambda: {**SAMPLED, "bad_words_ids": [[16, SLOW]]}),
    "three modes, penalty": (THREE, lambda: {**SAMPLED, "repetition_penalty": 3.0, "temperature": 0.5}),
    "any other token, cold": (OTHER, lambda: {**SAMPLED, "temperature": 0.5}),
    "any other token, hot, penalty": (OTHER, lambda: {**SAMPLED, "temperature": 2.0, "repetition_penalty": 1.5}),
    "several tokens, penalty": (LONG, lambda: {**SAMPLED, "repetition_penalty": 3.0}),
    "looks at max_new_tokens": (MODES, lambda: {**SAMPLED, "forced_eos_token_id": EOS, "min_new_tokens": 2}),
    "one row a call": (MODES, lambda: {**SAMPLED, "num_return_sequences": 3, "logits_processor": [PushesFast()]}),
}


def share_of_fast(model, modes, ids, bias, settings) -> float:
    """Mean over prompts of P(mode 0), as `generate` itself draws it."""
    settings = {**settings, "num_return_sequences": 1}
    out = model.generate(ids, mode_bias=bias, seed=1, output_scores=True, return_dict_in_generate=True, **settings)
    return torch.softmax(out.scores[len(modes.prefix)].double(), -1)[:, modes.token_ids[0]].mean().item()


@pytest.mark.parametrize("name", CASES)
def test_the_share_is_what_generate_draws(name):
    modes, settings = CASES[name]
    ids = prompts(9, 6)
    # A mode token that stands in the prompt is what a penalty hits.
    ids[0, 1] = ids[3, 2] = FAST
    with ak.patched(shared("llama"), modes) as model:
        found = ak.calibrate(model, ids, target_fast=0.6, batch_size=4, **settings())
        assert found.fast == pytest.approx(0.6, abs=1e-6)
        # Logits of batches of other sizes differ in their last bits.
        assert share_of_fast(model, modes, ids, found.bias, settings()) == pytest.approx(0.6, abs=1e-5)
        assert found.low <= found.bias <= found.high


def test_the_models_own_generation_config():
    model = build("llama")
    model.generation_config.update(do_sample=True, temperature=0.3, repetition_penalty=2.0, top_k=0)
    ids = prompts(9, 6)
    ids[:4, 2] = FAST
    with ak.patched(model, MODES):
        found = ak.calibrate(model, ids, target_fast=0.8)
        assert share_of_fast(model, MODES, ids, found.bias, {"max_new_tokens": 1}) == pytest.approx(0.8, abs=1e-5)


@pytest.mark.parametrize("modes", [MODES, OTHER], ids=["two", "other"])
def test_greedy_counts_what_generate_takes(modes):
    ids = prompts(8, 6)
    ids[:3, 2] = FAST
    settings = {"generation_config": config(do_sample=False, repetition_penalty=3.0, max_new_tokens=2)}
    with ak.patched(shared("llama"), modes) as model:
        found = ak.calibrate(model, ids, target_fast=0.25, **settings)
        out = model.generate(ids, mode_bias=found.bias + 1e-6, return_dict_in_generate=True, **settings)
    assert (out.modes == 0).float().mean() == 0.25


def test_left_padding():
    inputs = left_padded(prompts(6, 6), [6, 3, 5, 2, 6, 4])
    settings = {**SAMPLED, "repetition_penalty": 2.0}
    with ak.patched(shared("llama"), MODES) as model:
        found = ak.calibrate(model, inputs, target_fast=0.3, **settings)
        mask = {**settings, "attention_mask": inputs["attention_mask"]}
        share = share_of_fast(model, MODES, inputs["input_ids"], found.bias, mask)
    assert share == pytest.approx(0.3, abs=1e-5)


@pytest.mark.parametrize("banned", [FAST, SLOW])
def test_a_token_budget_where_a_prompt_may_not_take_a_mode(banned):
    modes = ak.Modes(fast=ak.Mode(FAST, max_new_tokens=2), slow=SLOW)
    settings = {"do_sample": True, "max_new_tokens": 6, "eos_token_id": None, "bad_words_ids": [[16, banned]]}
    ids = prompts(4, 6)
    assert (ids[:, -1] == 16).sum() == 1
    with ak.patched(shared("llama"), modes) as model:
        found = ak.calibrate(model, ids, target_tokens=3.5, samples=2, **settings)
        share = share_of_fast(model, modes, ids, found.bias, settings)
    # Fast rows have 2 tokens, slow ones 6.
    assert found.tokens == pytest.approx(3.5, abs=1e-6) and found.fast == pytest.approx((6 - 3.5) / 4, abs=1e-6)
    assert share == pytest.approx(found.fast, abs=1e-5)


def test_modes_that_no_bias_can_reach_are_named_as_a_range():
    settings = {**SAMPLED, "bad_words_ids": [[16, FAST]]}
    outside = pytest.raises(ValueError, match=r"target_fast must lie in \[0, 0.75\].*got 0.8")
    with ak.patched(shared("llama"), MODES) as model, outside:
        ak.calibrate(model, prompts(4, 6), target_fast=0.8, **settings)


def test_mode_probs_stay_the_models_own():
    ids = prompts(4, 6)
    ids[:, 2] = FAST
    with ak.patched(shared("llama"), MODES) as model:
        plain, shaped = (
            model.generate(ids, mode="auto", seed=1, return_dict_in_generate=True, **SAMPLED, repetition_penalty=p)
            for p in (1.0, 3.0)
        )
    assert torch.equal(plain.mode_probs, shaped.mode_probs)


def test_a_call_too_short_for_the_choice():
    too_short = pytest.raises(ValueError, match="a row ends before token 1, which chooses its mode")
    with ak.patched(shared("llama"), LONG) as model, too_short:
        ak.calibrate(model, prompts(2, 6), target_fast=0.5, do_sample=True, max_new_tokens=1)
