"""rng="hf" gives exactly the unpatched model's sampled tokens, scores and logits."""

import pytest
import torch
from char_tokenizer import char_tokenizer
from recorders import RowLengths
from tiny_models import FAST, SLOW, left_padded, prompts, shared
from transformers import LogitsProcessor, SynthIDTextWatermarkingConfig, WatermarkingConfig

import adapt_kernels as ak

MODES = ak.Modes(fast=FAST, slow=SLOW)
WIDTH, NEW = 8, 10


class Tilt(LogitsProcessor):
    """A user's own processor."""

    def __call__(self, input_ids, scores):
        return scores + torch.linspace(0, 2, scores.shape[1])


SETTINGS = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "filters": {"temperature": 1.3, "top_k": 20, "top_p": 0.9},
    "min_p": {"min_p": 0.1},
    "top_k_one": {"top_k": 1},
    "typical_p": {"typical_p": 0.6, "top_k": 30},
    "top_h": {"top_h": 0.6},
    "epsilon": {"epsilon_cutoff": 0.01},
    "eta": {"eta_cutoff": 0.02},
    "repetition_penalty": {"repetition_penalty": 1.5, "top_p": 0.8},
    "no_repeat_ngram": {"no_repeat_ngram_size": 2, "top_k": 4},
    "watermark": {"watermarking_config": WatermarkingConfig(bias=2.5, seeding_scheme="selfhash")},
    "synthid": {"watermarking_config": SynthIDTextWatermarkingConfig(keys=[3, 14, 15, 92], ngram_len=3)},
    "renormalize": {"renormalize_logits": True, "top_p": 0.9},
    "guidance": {"guidance_scale": 1.5},
    "samples": {"num_return_sequences": 3, "top_k": 10},
    "eos": {"eos_token_id": list(range(30, 50))},
    "own_processor": {"logits_processor": [Tilt()], "temperature": 0.8},
    "row_lengths": {"stopping_criteria": [RowLengths(WIDTH, [2, 7, 4])]},
}


def inputs_for(name):
    return {"input_ids": prompts(3, WIDTH)} if name == "guidance" else left_padded(prompts(3, WIDTH), [8, 3, 6])


def seeded(model, seed, **arguments):
    torch.manual_seed(seed)
    arguments = {"max_new_tokens": NEW, "do_sample": True, "eos_token_id": None, "top_k": 0, **arguments}
    return model.generate(**arguments)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("seed", [0, 1])
def test_tokens(name, seed):
    model = shared("qwen2")
    arguments = {**inputs_for(name), **SETTINGS[name]}
    expected = seeded(model, seed, **arguments)
    after = torch.get_rng_state()
    with ak.patched(model, MODES):
        assert torch.equal(seeded(model, seed, **arguments, rng="hf"), expected)
    assert torch.equal(torch.get_rng_state(), after), "the generator must be left where Hugging Face leaves it"


@pytest.mark.parametrize("name", SETTINGS)
def test_scores_and_logits(name):
    model = shared("qwen2")
    arguments = {**inputs_for(name), **SETTINGS[name]}
    arguments |= {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    expected = seeded(model, 3, **arguments)
    with ak.patched(model, MODES):
        got = seeded(model, 3, **arguments, rng="hf")
    assert torch.equal(got.sequences, expected.sequences)
    for field in ("scores", "logits"):
        ours, theirs = getattr(got, field), getattr(expected, field)
        assert type(ours) is type(theirs) and len(ours) == len(theirs)
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(ours, theirs, strict=True))


def test_token_healing():
    # Healing calls generate on the model again; that inner call must not touch the generator either.
    model, tokenizer = shared("qwen2"), char_tokenizer()
    arguments = {"input_ids": tokenizer(["xyza", "kmnd"], return_tensors="pt").input_ids}
    arguments |= {"token_healing": True, "tokenizer": tokenizer}
    expected = seeded(model, 5, **arguments)
    with ak.patched(model, MODES):
        assert torch.equal(seeded(model, 5, **arguments, rng="hf"), expected)


def test_train_mode_draws_the_same_dropout():
    model = shared("gpt2").train()
    try:
        expected = seeded(model, 2, input_ids=prompts(2, WIDTH))
        with ak.patched(model, MODES):
            assert torch.equal(seeded(model, 2, input_ids=prompts(2, WIDTH), rng="hf"), expected)
    finally:
        model.eval()


def test_mode_arguments_work_with_it():
    model, ids = shared("qwen2"), prompts(6, WIDTH)
    with ak.patched(model, MODES):
        first = seeded(model, 4, input_ids=ids, mode="auto", rng="hf", return_dict_in_generate=True)
        again = seeded(model, 4, input_ids=ids, mode="auto", rng="hf")
        forced = seeded(model, 4, input_ids=ids, mode="slow", rng="hf")
    assert torch.equal(first.sequences, again)
    token_of_mode = torch.tensor(MODES.token_ids)
    assert torch.equal(first.sequences[:, WIDTH], token_of_mode[first.modes.long()])
    assert (forced[:, WIDTH] == SLOW).all()
