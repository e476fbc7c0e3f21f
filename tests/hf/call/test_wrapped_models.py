"""What only wraps a model, and calls that would drop mode arguments: errors that say what to do instead."""

from contextlib import contextmanager

import pytest
import torch
from char_tokenizer import char_tokenizer
from tiny_models import FAST, SLOW, build, prompts, shared
from transformers import GenerationConfig, pipeline

import adapt_kernels as ak

MODES = ak.Modes(fast=FAST, slow=SLOW)


class DistributedDataParallel(torch.nn.Module):
    """Holds its model as the real one does, which needs a process group."""

    def __init__(self, module):
        super().__init__()
        self.module = module


WRAPPERS = {
    "torch.compile": (torch.compile, "OptimizedModule", "model._orig_mod"),
    "DataParallel": (torch.nn.DataParallel, "DataParallel", "model.module"),
    "DDP": (DistributedDataParallel, "DistributedDataParallel", "model.module"),
    "compiled and parallel": (
        *(lambda model: torch.nn.DataParallel(torch.compile(model)), "DataParallel", "model.module._orig_mod"),
    ),
    "pipeline": (
        *(lambda model: pipeline("text-generation", model=model, tokenizer=char_tokenizer()),),
        *("TextGenerationPipeline", "model.model"),
    ),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_is_refused_with_the_way_to_the_model(name):
    wrap, kind, path = WRAPPERS[name]
    model = build("llama")
    wrapper = wrap(model)
    text = rf"got {kind}, which only wraps a LlamaForCausalLM: pass that one, {path}, whose generate is what runs"
    for call in (lambda: ak.patch(wrapper, MODES), lambda: ak.unpatch(wrapper), lambda: ak.last_stats(wrapper)):
        with pytest.raises(TypeError, match=text):
            call()
    ak.patch(eval(path, {"model": wrapper}), MODES)
    assert (model.generate(prompts(2, 6), mode="slow", max_new_tokens=1)[:, 6] == SLOW).all()


def test_the_generate_of_a_compiled_model_is_the_patched_ones():
    model = ak.patch(build("llama"), MODES)
    compiled = torch.compile(model)
    assert (compiled.generate(prompts(2, 6), mode="slow", max_new_tokens=1)[:, 6] == SLOW).all()


@pytest.mark.parametrize("thing", [object(), "a/path", None, torch.nn.Linear(2, 2), shared("llama").model])
def test_what_holds_no_model_that_generates(thing):
    with pytest.raises(
        TypeError, match=rf"must be a Hugging Face model with generate\(\); got {type(thing).__name__}$"
    ):
        ak.patch(thing, MODES)


def test_a_pipeline_passes_mode_arguments_on():
    model = ak.patch(build("llama"), MODES)
    pipe = pipeline("text-generation", model=model, tokenizer=char_tokenizer())
    mode = {name: pipe("abc", mode=name, max_new_tokens=3, return_tensors=True)[0] for name in ("fast", "slow")}
    assert [mode[name]["generated_token_ids"][-3] for name in ("fast", "slow")] == [FAST, SLOW]


@contextmanager
def refused(text, modes=MODES):
    with ak.patched(shared("llama"), modes) as model, pytest.raises(ValueError, match=text):
        yield model


@pytest.mark.parametrize("name", ["mode_bias", "fast_prob", "mode", "seed", "rng", "kv_layout"])
def test_continuous_batching_refuses_what_it_would_drop(name):
    values = {"mode_bias": 1.0, "fast_prob": 0.5, "mode": "slow", "seed": 7, "rng": "hf", "kv_layout": "rows"}
    with refused(f"{name} cannot be honoured by generate_batch.*call generate") as model:
        model.generate_batch([[20, 21]], max_new_tokens=2, **{name: values[name]})


def test_continuous_batching_refuses_a_mode_with_a_cap():
    capped = ak.Modes(fast=ak.Mode(FAST, max_new_tokens=2), slow=SLOW)
    with refused("Mode.max_new_tokens of 'fast' cannot be honoured by generate_batch", capped) as model:
        model.generate_batch([[20, 21]], max_new_tokens=4)


@pytest.mark.parametrize("setting", [{"mode_bias": 1.0}, {"mode": "slow"}, {"fast_prob": 0.3}])
def test_a_generation_config_holds_no_mode_argument(setting):
    config = GenerationConfig(max_new_tokens=2, pad_token_id=0, **setting)
    with refused(f"{next(iter(setting))} is no setting of a GenerationConfig: pass it to generate") as model:
        model.generate(prompts(2, 6), generation_config=config)
