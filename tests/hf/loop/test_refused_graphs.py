"""`cuda_graph` where there is no graph: what is refused, what cannot be captured, and that each says why."""

import re

import pytest
import torch
from fake_graphs import MODES, call
from recorders import forward_calls
from tiny_models import FAST, SLOW, build

import adapt_kernels as ak


def attention_with(model, change):
    """The model, whose second layer's attention runs `change(hidden, settings)` first."""
    attention = model.model.layers[1].self_attn
    forward = attention.forward

    @ak.row_independent
    def changed(hidden_states, **settings):
        change(hidden_states, settings)
        return forward(hidden_states=hidden_states, **settings)

    attention.forward = changed
    return model


def hooked(model):
    model.model.norm.register_forward_hook(ak.row_independent(lambda module, given, output: None))
    return model


def counting():
    count = []

    def change(hidden, settings):
        count.append(hidden)
        hidden.mul_(1.0 + len(count) * 1e-9)

    return change


def read(hidden, settings):
    settings["scale"] = hidden.sum().item()


def made_on_the_host(hidden, settings):
    hidden + torch.tensor(1.0)


FORWARDS = {
    "reads": (read, "aten::_local_scalar_dense reads from the device"),
    "picks by a mask": (lambda hidden, settings: hidden[hidden > 0], "aten::index.Tensor reads from the device"),
    "constant": (made_on_the_host, "a tensor is made of values of the host"),
    "counts": (counting(), "two runs are not the same: op .*, aten::mul_.Tensor, runs on other tensors or settings"),
    "no mask": (
        lambda hidden, settings: settings.update(attention_mask=None),
        "over KV of a fixed size, behind a mask, it gives other logits",
    ),
}


@pytest.mark.parametrize("name", FORWARDS)
def test_a_forward_that_cannot_be_captured_says_why(graphs, name):
    change, reason = FORWARDS[name]
    with ak.patched(attention_with(build("llama"), change), MODES) as model:
        out = model.generate(**call(), cuda_graph="auto")
        assert out.stats.plan == "full" and not graphs.captured and out.stats.graph_replays == 0
        found = out.stats.graph_reason.removeprefix("the model's forward cannot be captured: ")
        assert re.fullmatch(reason, found), found
        wanted = model.generate(**call())
        with pytest.raises(RuntimeError, match="cuda_graph=True: the model's forward cannot be captured"):
            model.generate(**call(), cuda_graph=True)
    assert name == "counts" or torch.equal(out.sequences, wanted.sequences)


REFUSED = {
    "sample_only": ("llama", {"rng": "hf", "seed": None}, "plan 'sample_only': rng='hf' draws for the whole batch"),
    "original": (
        "llama",
        {"num_beams": 3, "do_sample": False, "seed": None},
        "plan 'original': beam search has its own decoding loop",
    ),
    "kv_keep": ("llama", {"kv_keep": ak.KeepKV(6, 0.5, 2)}, "kv_keep drops positions"),
    "paths": (
        "llama",
        {"paths": ak.Paths(keep=0.5, at=6, score=lambda view: view.lengths)},
        "paths scores by a function",
    ),
    "sliding": ("mistral", {}, "cache layers of type DynamicSlidingWindowLayer keep no fixed place"),
    "states": ("lfm2", {}, "cache layers of type LinearAttentionLayer keep no fixed place"),
    "hook": ("hooked", {}, "a forward hook on model.norm would not be called by a replay"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_graph_says_why(graphs, name):
    architecture, settings, reason = REFUSED[name]
    model = hooked(build("llama")) if architecture == "hooked" else build(architecture)
    with ak.patched(model, ak.Modes(fast=FAST, slow=SLOW)):
        out = model.generate(**{**call(), **settings}, cuda_graph="auto")
        assert out.stats.graph_reason.startswith(reason) and not out.stats.graph_replays
        text = "cuda_graph cannot be honoured" if name == "original" else f"cuda_graph=True cannot serve .*: {reason}"
        with pytest.raises(ValueError, match=text):
            model.generate(**{**call(), **settings}, cuda_graph=True)
    assert not graphs.captured


def test_shared_prompts_have_none_and_true_takes_rows(graphs):
    given = call(kv_layout="shared")
    with ak.patched(build("llama"), MODES) as model:
        assert model.generate(**given, cuda_graph="auto").stats.graph_reason.startswith("prompts are shared")
        stats = model.generate(**{**given, "kv_layout": "auto"}, cuda_graph=True).stats
        assert (stats.kv_layout, stats.graph_reason) == ("rows", "") and stats.graph_replays


def test_a_call_too_short_says_so(graphs):
    with ak.patched(build("llama"), MODES) as model:
        stats = model.generate(**call(new=3), cuda_graph=True).stats
    assert (stats.graph_replays, stats.graph_reason) == (0, "the call ended before a step's shape had come three times")


def test_a_cpu_has_none():
    with ak.patched(build("llama"), MODES) as model:
        stats = model.generate(**call(), cuda_graph="auto").stats
        assert stats.graph_replays == stats.graph_captures == 0
        assert stats.graph_reason == "the model is on cpu, and CUDA graphs are for a CUDA device"
        with (
            forward_calls(model) as calls,
            pytest.raises(ValueError, match="cannot serve this call: the model is on cpu"),
        ):
            model.generate(**call(), cuda_graph=True)
        assert calls == []
        stats = model.generate(**call()).stats
        assert (stats.graph_captures, stats.graph_replays, stats.graph_reason) == (None, None, "")
