"""Tokens of our own stream follow softmax of Hugging Face's processed scores, and no filtered token is ever drawn."""

import pytest
import torch
from goodness import assert_fits
from recorders import RowLengths
from test_huggingface_sampler import SETTINGS, inputs_for
from tiny_models import FAST, SLOW, build, prompts, shared

import adapt_kernels as ak

MODES = ak.Modes(fast=FAST, slow=SLOW)
SMALL = 24
PROMPT = [[3, 7]]
FILTERS = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 6},
    "top_p": {"top_p": 0.7},
    "min_p": {"min_p": 0.15},
    "all_filters": {"temperature": 1.4, "top_k": 12, "top_p": 0.9, "min_p": 0.05},
    "typical_p": {"typical_p": 0.5},
    "eta": {"eta_cutoff": 0.05},
    "top_h": {"top_h": 0.5},
    "penalty": {"repetition_penalty": 3.0, "top_p": 0.9},
    "bans": {"suppress_tokens": [5, 7, 9], "temperature": 1.2},
}


@pytest.fixture(scope="module")
def small():
    return build("llama", vocab_size=SMALL, num_hidden_layers=1)


def sample(model, ids, **arguments):
    arguments = {"max_new_tokens": 1, "do_sample": True, "top_k": 0, "eos_token_id": None, **arguments}
    return model.generate(torch.as_tensor(ids), **arguments)


def huggingface_probabilities(model, ids, **settings):
    """[rows, V] float64: what the unpatched model's sampler is given at the first new token."""
    out = sample(model, ids, return_dict_in_generate=True, output_scores=True, **settings)
    return torch.softmax(out.scores[0].double(), -1)


def draws(model, ids, rows, seeds, **settings):
    with ak.patched(model, MODES):
        parts = [sample(model, ids, num_return_sequences=rows, seed=seed, **settings) for seed in seeds]
    return torch.cat(parts)[:, len(ids[0]) :]


@pytest.mark.parametrize("name", FILTERS)
def test_first_token(small, name):
    expected = huggingface_probabilities(small, PROMPT, **FILTERS[name])[0]
    assert_fits(draws(small, PROMPT, 8_000, [1, 2], **FILTERS[name]), expected)


def test_first_token_over_200k_draws(small):
    expected = huggingface_probabilities(small, PROMPT, **FILTERS["all_filters"])[0]
    tokens = draws(small, PROMPT, 8_000, range(100, 125), **FILTERS["all_filters"])
    assert tokens.numel() == 200_000
    assert_fits(tokens, expected)


@pytest.mark.full
@pytest.mark.parametrize("name", FILTERS)
def test_first_token_over_200k_draws_of_every_filter(small, name):
    expected = huggingface_probabilities(small, PROMPT, **FILTERS[name])[0]
    assert_fits(draws(small, PROMPT, 8_000, range(200, 225), **FILTERS[name]), expected)


CHAIN_ROWS = [pytest.param(12_000, id="12k"), pytest.param(200_000, id="200k", marks=pytest.mark.full)]


@pytest.mark.parametrize("rows", CHAIN_ROWS)
def test_two_steps_form_a_chain(small, rows):
    settings = {"temperature": 0.9, "top_p": 0.8}
    first = huggingface_probabilities(small, PROMPT, **settings)[0]
    follow = torch.cat([huggingface_probabilities(small, [[*PROMPT[0], token]], **settings) for token in range(SMALL)])
    pairs = draws(small, PROMPT, 4_000, range(rows // 4_000), max_new_tokens=2, **settings)
    assert_fits(pairs[:, 0] * SMALL + pairs[:, 1], (first[:, None] * follow).reshape(-1))


@pytest.mark.parametrize("rows", CHAIN_ROWS)
def test_biased_mode_and_the_token_after_it(small, rows):
    bias, settings = 0.8, {"temperature": 0.9, "top_k": 7}
    logits = small(torch.tensor(PROMPT)).logits[0, -1].detach().double()
    # top_k must not touch the gate: both modes stay possible even if neither is among the 7 best tokens.
    mode = torch.softmax((logits[[FAST, SLOW]] + torch.tensor([bias, 0.0])) / 0.9, 0)
    follow = torch.cat([huggingface_probabilities(small, [[*PROMPT[0], token]], **settings) for token in (FAST, SLOW)])
    pairs = draws(small, PROMPT, 4_000, range(rows // 4_000), max_new_tokens=2, mode_bias=bias, **settings)
    assert set(pairs[:, 0].tolist()) == {FAST, SLOW}
    assert_fits((pairs[:, 0] - FAST) * SMALL + pairs[:, 1], (mode[:, None] * follow).reshape(-1))


SAMPLED = [name for name in SETTINGS if name != "samples"]


@pytest.mark.parametrize("name", SAMPLED)
def test_no_filtered_token_at_any_step(name):
    model, inputs = shared("qwen2"), inputs_for(name)
    width = inputs["input_ids"].shape[1]
    arguments = {"max_new_tokens": 10, **SETTINGS[name], "seed": 5}
    arguments |= {k: v for k, v in inputs.items() if k != "input_ids"}
    with ak.patched(model, MODES):
        out = sample(model, inputs["input_ids"], **arguments, return_dict_in_generate=True, output_scores=True)
        plain = sample(model, inputs["input_ids"], **arguments)
    # The fused path (no scores asked) and the path through Hugging Face's scores draw the same tokens.
    assert torch.equal(out.sequences, plain)
    tokens = out.sequences[:, width:]
    drawn = torch.stack(out.scores, 1).gather(2, tokens[:, :, None]).squeeze(2)
    ended = torch.zeros_like(tokens, dtype=torch.bool)
    if name == "eos":
        ended = torch.isin(tokens, torch.tensor(SETTINGS[name]["eos_token_id"])).long().cumsum(1).roll(1, 1) > 0
        ended[:, 0] = False
    assert (drawn[~ended] > -torch.inf).all()


def test_sampled_rows_end_like_huggingface_rows():
    # Row ends are Hugging Face's too: with an EOS criterion everything after a row's end is pad.
    model, ids = shared("llama"), prompts(3, 6)
    with ak.patched(model, MODES):
        sequences = sample(
            model, ids, max_new_tokens=9, seed=2, eos_token_id=1, stopping_criteria=[RowLengths(6, [2, 7, 4])]
        )
    assert sequences.shape[1] == 6 + 7
    assert [(row[6:] != 0).sum() for row in sequences] == [2, 7, 4]
