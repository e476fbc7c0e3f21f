"""Modes, seeds and biases as arrays and tensors: names or indices, one per row or per prompt."""

import numpy as np
import pytest
import torch
from tiny_models import FAST, SLOW, prompts, shared

import adapt_kernels as ak

MODES = ak.Modes(fast=FAST, slow=SLOW)


def generate(rows=2, **arguments):
    arguments = {"max_new_tokens": 2, "do_sample": False, "eos_token_id": None, **arguments}
    with ak.patched(shared("llama"), MODES) as model:
        return model.generate(prompts(rows, 6), return_dict_in_generate=True, **arguments)


@pytest.mark.parametrize(
    "mode",
    [
        np.array(["slow", "fast"]),
        np.array(["slow", "fast"], dtype=object),
        np.array([1, 0]),
        np.array([1, 0], dtype=np.int8),
        torch.tensor([1, 0], dtype=torch.int8),
    ],
    ids=["names", "objects", "indices", "int8", "tensor"],
)
def test_modes_of_rows(mode):
    assert generate(mode=mode).modes.tolist() == [1, 0]
    assert generate(mode=mode, num_return_sequences=2, do_sample=True).modes.tolist() == [1, 1, 0, 0]


def test_modes_of_a_call_may_be_asked_for_again():
    first = generate(4, mode=np.array(["slow", "fast", "fast", "slow"]))
    assert torch.equal(generate(4, mode=first.modes).sequences, first.sequences)


def test_auto_and_single_names():
    assert generate(mode=np.array("slow")).modes.tolist() == [1, 1]
    assert generate(mode=np.str_("slow")).modes.tolist() == [1, 1]
    auto = generate(4, mode="auto")
    mixed = generate(4, mode=np.array(["auto", "slow", "auto", "auto"]))
    assert mixed.modes.tolist() == [auto.modes[0], 1, *auto.modes[2:]]


BAD = {
    "index above": (ValueError, np.array([1, 2]), r"mode indices must lie in \[0, 1\]; got 2"),
    "no mode": (ValueError, torch.tensor([1, -1]), r"mode indices must lie in \[0, 1\]; got -1.*'auto'"),
    "matrix": (ValueError, np.array([["slow", "fast"]]), r"mode must be one name, or one per row; got shape \(1, 2\)"),
    "unknown name": (ValueError, np.array(["slow", "quick"]), "unknown mode 'quick'; the modes are 'fast', 'slow'"),
    "floats": (ValueError, np.array([1.0, 0.0]), "unknown mode 1.0"),
    "flags": (ValueError, np.array([True, False]), "unknown mode True"),
    "one index": (TypeError, np.array(1), "mode must be 'auto', 'balanced', a mode name or a list of names; got 1"),
    "too few": (ValueError, np.array(["slow"]), r"mode must be one value, or one per row \(2 = .*got shape \(1,\)"),
    "with a bias": (ValueError, np.array(["slow", "fast"]), "already decides the mode: leave out mode_bias"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arrays_are_named(name):
    error, mode, text = BAD[name]
    more = {"mode_bias": 1.0} if name == "with a bias" else {}
    with pytest.raises(error, match=text):
        generate(mode=mode, **more)


def test_seeds_and_biases():
    sampled = {"do_sample": True, "top_k": 0, "max_new_tokens": 6}
    expected = generate(seed=[3, 2**63 + 5], mode_bias=[1.0, -1.0], **sampled).sequences
    arrays = {"seed": np.array([3, 2**63 + 5], dtype=np.uint64), "mode_bias": np.array([1.0, -1.0])}
    assert torch.equal(generate(**arrays, **sampled).sequences, expected)
    assert torch.equal(generate(seed=np.int64(7), **sampled).sequences, generate(seed=7, **sampled).sequences)
    for seed in (np.array([1.0, 2.0]), np.array([True, False]), np.array([[1, 2]])):
        with pytest.raises(TypeError, match="seed must be an integer or one integer per row"):
            generate(seed=seed, **sampled)


def test_the_plain_processor_takes_them_too():
    ids, model = prompts(2, 6), shared("llama")
    arguments = {"max_new_tokens": 1, "do_sample": False, "num_return_sequences": 1}
    for given in ({"mode": np.array(["slow", "fast"])}, {"mode_bias": np.array([-40.0, 40.0])}):
        processor = ak.ModeBias(MODES, **given, prompt_length=6)
        assert model.generate(ids, logits_processor=[processor], **arguments)[:, 6].tolist() == [SLOW, FAST]
    spread = ak.ModeBias(MODES, mode_bias=np.array([-40.0, 40.0]), prompt_length=6)
    arguments |= {"num_return_sequences": 2, "do_sample": True}
    assert model.generate(ids, logits_processor=[spread], **arguments)[:, 6].tolist() == [SLOW, SLOW, FAST, FAST]
