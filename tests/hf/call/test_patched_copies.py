"""Copies, pickles, saved folders and wrappers of a patched model."""

import copy
import json
import pickle

import pytest
import torch
from char_tokenizer import char_tokenizer
from tiny_models import FAST, SLOW, build, prompts
from transformers import AutoModelForCausalLM, LlamaForCausalLM, pipeline

import adapt_kernels as ak

MODES = ak.Modes(fast=FAST, slow=SLOW)
WIDTH = 6


def greedy(model, **arguments):
    return model.generate(prompts(3, WIDTH), max_new_tokens=5, do_sample=False, eos_token_id=None, **arguments)


def through_torch_save(model, tmp_path):
    torch.save(model, tmp_path / "model.pt")
    return torch.load(tmp_path / "model.pt", weights_only=False)


COPIES = {
    "pickle": lambda model, path: pickle.loads(pickle.dumps(model)),
    "pickle protocol 2": lambda model, path: pickle.loads(pickle.dumps(model, protocol=2)),
    "deepcopy": lambda model, path: copy.deepcopy(model),
    "torch.save": through_torch_save,
    "copy": lambda model, path: copy.copy(model),
}


@pytest.mark.parametrize("way", COPIES)
def test_copies_are_unpatched_and_work(way, patched_llama, tmp_path):
    expected = greedy(patched_llama)
    clone = COPIES[way](patched_llama, tmp_path)
    assert type(clone) is LlamaForCausalLM
    assert clone.__dict__.keys() == patched_llama.__dict__.keys()
    assert torch.equal(greedy(clone), expected)
    with pytest.raises(ValueError, match="mode"):
        greedy(clone, mode="slow")
    with pytest.raises(ValueError, match="not patched"):
        ak.last_stats(clone)
    # The model itself stays patched, and neither shares state with the other.
    assert (greedy(patched_llama, mode="slow")[:, WIDTH] == SLOW).all()
    ak.patch(clone, ak.Modes(fast=SLOW, slow=FAST))
    assert (greedy(clone, mode="slow")[:, WIDTH] == FAST).all()
    assert (greedy(patched_llama, mode="slow")[:, WIDTH] == SLOW).all()


def test_deepcopy_does_not_share_weights(patched_llama):
    expected = greedy(patched_llama)
    clone = copy.deepcopy(patched_llama)
    with torch.no_grad():
        for parameter in clone.parameters():
            parameter.zero_()
    assert torch.equal(greedy(patched_llama), expected)


def test_save_pretrained_names_the_original_class(patched_llama, tmp_path):
    patched_llama.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is LlamaForCausalLM
    assert torch.equal(greedy(again), greedy(patched_llama))


def test_a_copy_of_a_module_that_holds_it(patched_llama):
    holder = torch.nn.ModuleDict({"inner": patched_llama})
    clone = pickle.loads(pickle.dumps(holder))["inner"]
    assert type(clone) is LlamaForCausalLM
    assert torch.equal(greedy(clone), greedy(patched_llama))


def test_pipeline_knows_the_class_and_passes_mode_arguments(patched_llama):
    writer = pipeline("text-generation", model=patched_llama, tokenizer=char_tokenizer())
    arguments = {"max_new_tokens": 4, "do_sample": False, "return_full_text": False}
    text = writer("xyzklm", mode="slow", **arguments)[0]["generated_text"]
    assert text.startswith(char_tokenizer().decode([SLOW]))


class Adapter(torch.nn.Module):
    """Like a PEFT model: wraps the model, and its `generate` calls the wrapped one's."""

    def __init__(self, model):
        super().__init__()
        self.base = model

    def get_base_model(self):
        return self.base

    def generate(self, *args, **kwargs):
        return self.base.generate(*args, **kwargs)


def test_a_wrapper_is_patched_at_its_base_model():
    wrapper = Adapter(build("llama"))
    assert ak.patch(wrapper, MODES) is wrapper
    assert type(wrapper) is Adapter
    assert (greedy(wrapper, mode="slow")[:, WIDTH] == SLOW).all()
    assert ak.last_stats(wrapper) is ak.last_stats(wrapper.base)
    assert ak.last_stats(wrapper).plan == "full"
    ak.unpatch(wrapper)
    assert type(wrapper.base) is LlamaForCausalLM
    with ak.patched(wrapper, MODES) as same:
        assert same is wrapper and (greedy(wrapper, mode="fast")[:, WIDTH] == FAST).all()
    assert type(wrapper.base) is LlamaForCausalLM


NOT_MODELS = {
    "module": lambda: torch.nn.Linear(2, 2),
    "model without a head": lambda: build("llama").model,
    "text": lambda: "model",
    "nothing": lambda: None,
    "wrapper of a module": lambda: Adapter(torch.nn.Linear(2, 2)),
}


@pytest.mark.parametrize("kind", NOT_MODELS)
def test_not_a_generating_model(kind):
    thing = NOT_MODELS[kind]()
    name = type(thing).__name__
    for call in (lambda: ak.patch(thing, MODES), lambda: ak.unpatch(thing), lambda: ak.last_stats(thing)):
        with pytest.raises(TypeError, match=rf"must be a Hugging Face model with generate\(\); got {name}"):
            call()
    with pytest.raises(TypeError, match="Hugging Face model"), ak.patched(thing, MODES):
        pass


@pytest.mark.parametrize("modes", [{"fast": 5, "slow": 6}, (5, 6), "fast", None])
def test_modes_must_be_modes(modes, llama):
    with pytest.raises(TypeError, match=r"modes must be adapt_kernels.Modes, such as Modes\(fast=5, slow=6\)"):
        ak.patch(llama, modes)
    assert type(llama) is LlamaForCausalLM
