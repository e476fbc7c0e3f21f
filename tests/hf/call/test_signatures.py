"""Hugging Face asks the signatures of its methods what to pass: ours must answer as theirs."""

import inspect

import pytest
import torch
from parity import MODES
from tiny_models import EOS, FAST, PAD, SLOW, build, prompts, shared

import adapt_kernels as ak
from adapt_kernels.hf.call.class_swap import OVERRIDDEN

DECODING = ("_sample", "_beam_search", "_assisted_decoding", "_prepare_generated_length", "_prepare_generation_config")


@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_signatures_are_the_original_classes(architecture):
    model = build(architecture)
    original = type(model)
    with ak.patched(model, MODES):
        for name in (*DECODING, *OVERRIDDEN):
            assert inspect.signature(getattr(type(model), name)) == inspect.signature(getattr(original, name)), name


@pytest.mark.parametrize("architecture", ["t5", "bart"])
@pytest.mark.parametrize("more", [{"assistant": True}, {"prompt_lookup_num_tokens": 2}, {"num_beams": 2}, {}], ids=str)
def test_encoder_decoder_loops(architecture, more):
    model = build(architecture, decoder_start_token_id=PAD)
    more = dict(more)
    if more.pop("assistant", False):
        more["assistant_model"] = build(architecture, seed=5, decoder_start_token_id=PAD)
    call = {"input_ids": prompts(1, 7), "max_new_tokens": 6, "do_sample": False, **more}
    call["return_dict_in_generate"] = True
    expected = model.generate(**call)
    with ak.patched(model, MODES):
        ours = model.generate(**call)
    assert torch.equal(ours.sequences, expected.sequences) and ours.stats.plan == "original"


def test_assisted_decoding_of_a_decoder():
    model, assistant = build("llama"), build("llama", seed=7)
    call = {"input_ids": prompts(1, 7), "max_new_tokens": 6, "do_sample": False, "eos_token_id": EOS}
    expected = model.generate(**call, assistant_model=assistant)
    with ak.patched(model, MODES), ak.patched(assistant, MODES):
        ours = model.generate(**call, assistant_model=assistant, return_dict_in_generate=True)
    assert torch.equal(ours.sequences, expected)


def test_modes_are_reported_by_every_loop():
    """The prompt's width is known whatever loop runs."""
    model = shared("llama")
    for more in ({"num_beams": 2}, {"prompt_lookup_num_tokens": 2}):
        with ak.patched(model, MODES):
            out = model.generate(prompts(1, 7), max_new_tokens=3, do_sample=False, return_dict_in_generate=True, **more)
        first = int(out.sequences[0, 7])
        assert out.modes.tolist() == [{FAST: 0, SLOW: 1}.get(first, -1)]


def test_a_model_with_a_sampling_loop_of_its_own():
    model = build("llama")

    class OwnLoop(type(model)):
        def _sample(self, input_ids, inputs_tensor=None, **kwargs):
            assert inputs_tensor is not None
            return input_ids

    model.__class__ = OwnLoop
    with ak.patched(model, MODES):
        assert model.generate(prompts(2, 5), max_new_tokens=2).shape == (2, 5)
        assert "its own sampling loop" in ak.last_stats(model).reason
