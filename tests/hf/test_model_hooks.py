"""Hooks on the patched model itself: they count where they change what they see; a meter does not."""

import pytest
import torch
from parity import MODES, ROWS, both, six_rows
from tiny_models import VOCAB, build

import adapt_kernels as ak


class OfLogits:
    def __init__(self):
        self.vectors = 3 * torch.randn(ROWS, 1, VOCAB, generator=torch.Generator().manual_seed(0))

    def new_output(self, module, args, output):
        return type(output)(output | {"logits": output.logits + self.vectors[: len(output.logits)]})

    def new_logits(self, module, args, output):
        output.logits = output.logits + self.vectors[: len(output.logits)]

    def in_place(self, module, args, output):
        output.logits += self.vectors[: len(output.logits)]

    def whole_batch_only(self, module, args, output):
        output.logits = output.logits.view(ROWS, -1, VOCAB) + self.vectors

    def inputs(self, module, args, kwargs):
        embeddings = module.get_input_embeddings()(kwargs.pop("input_ids"))
        return args, kwargs | {"inputs_embeds": embeddings + self.vectors[: len(embeddings), :, :32]}


def attached(name):
    model, hooks = build("llama"), OfLogits()
    if name == "inputs":
        model.register_forward_pre_hook(hooks.inputs, with_kwargs=True)
    else:
        model.register_forward_hook(getattr(hooks, name))
    return model


@pytest.mark.parametrize("name", ["new_output", "new_logits", "in_place", "whole_batch_only", "inputs"])
def test_one_entry_per_row(name):
    model = attached(name)
    plain = build("llama").generate(**six_rows())
    unpatched, patched = both(model, lambda m: m.generate(**six_rows()), "sample_only")
    assert torch.equal(unpatched, patched) and not torch.equal(unpatched, plain)


def test_the_next_call_knows():
    model = attached("new_logits")
    with ak.patched(model, MODES):
        model.generate(**six_rows())
        first = ak.last_stats(model)
        model.generate(**six_rows())
        second = ak.last_stats(model)
    assert "OfLogits.new_logits on the model changes what goes into or out of it" in first.reason
    assert second.reason == first.reason
    # The first call's merged prefill showed it, and was done again.
    assert first.prefill_tokens == 9 * 8 and second.prefill_tokens == 6 * 8


def test_vouched_for():
    model = build("llama")
    vector = torch.randn(97, generator=torch.Generator().manual_seed(0))

    def add(module, args, output):
        output.logits = output.logits + vector

    model.register_forward_hook(ak.row_independent(add))
    unpatched, patched = both(model, lambda m: m.generate(**six_rows()), "full")
    assert torch.equal(unpatched, patched)


def test_one_that_begins_late_is_warned_of_once():
    model, calls, hooks = build("llama"), [], OfLogits()

    def late(module, args, output):
        calls.append(len(output.logits))
        if len(calls) > 2:
            hooks.in_place(module, args, output)

    model.register_forward_hook(late)
    with ak.patched(model, MODES):
        with pytest.warns(UserWarning, match="late on the model changes .* it began when rows had been merged") as said:
            model.generate(**six_rows())
        assert len(said) == 1 and said[0].filename == __file__
        assert len(model._forward_hooks) == 1 and not model._forward_pre_hooks


def test_a_meter_under_inference_mode():
    model, batches = build("llama"), []
    model.register_forward_hook(lambda module, args, output: batches.append(len(output.logits)))
    plain = model.generate(**six_rows())
    with ak.patched(model, MODES):
        with torch.inference_mode():
            assert torch.equal(model.generate(**six_rows()), plain)
        assert "could, unseen under inference_mode, change" in ak.last_stats(model).reason
        model.generate(**six_rows())
        assert ak.last_stats(model).plan == "full"


def test_the_models_own_error_stays_its_own():
    model = build("llama")
    model.register_forward_hook(lambda module, args, output: None)
    with ak.patched(model, MODES), pytest.raises(IndexError, match="out of range"):
        model.generate(input_ids=torch.full((2, 4), 10**6), max_new_tokens=2, pad_token_id=0)


def test_a_meter_sees_what_is_computed():
    model, batches = build("llama"), []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: batches.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    with ak.patched(model, MODES):
        model.generate(**six_rows())
        assert ak.last_stats(model).plan == "full" and batches[0] == 3
