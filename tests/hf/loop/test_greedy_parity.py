"""Greedy tokens of a patched model equal the unpatched ones: many architectures, left padding, every stop rule."""

import pytest
import torch
from char_tokenizer import char_tokenizer
from recorders import RowLengths
from tiny_models import DECODER_ONLY, DEFAULT_RUN, FAST, PAD, SLOW, build, left_padded, prompts, shared

import adapt_kernels as ak

MODES = ak.Modes(fast=FAST, slow=SLOW)
WIDTH, NEW = 8, 14
ARCHITECTURES = [a if a in DEFAULT_RUN else pytest.param(a, marks=pytest.mark.full) for a in DECODER_ONLY]


def both(model, plan=None, **arguments):
    """(unpatched, patched) output of the same greedy call, which must take `plan` ("full" where the model can)."""
    arguments = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, **arguments}
    unpatched = model.generate(**arguments)
    with ak.patched(model, MODES):
        patched = model.generate(**arguments)
        if plan is None:
            plan = "sample_only" if model.config.model_type == "recurrent_gemma" else "full"
        assert ak.last_stats(model).plan == plan
    return unpatched, patched


def padded_inputs(rows=4):
    return left_padded(prompts(rows, WIDTH), [8, 3, 8, 5][:rows])


def emitted(model, inputs, row, step) -> int:
    """A token that greedy decoding is known to reach, so that it can serve as EOS."""
    sequences = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
    return int(sequences[row, WIDTH + step])


def ended_lengths(sequences) -> list[int]:
    return (sequences[:, WIDTH:] != PAD).sum(1).tolist()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_left_padding(architecture):
    unpatched, patched = both(shared(architecture), **padded_inputs())
    assert torch.equal(unpatched, patched)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_several_eos_ids(architecture):
    model, inputs = shared(architecture), padded_inputs()
    eos = [emitted(model, inputs, 0, 2), emitted(model, inputs, 2, 6)]
    unpatched, patched = both(model, **inputs, eos_token_id=eos)
    assert torch.equal(unpatched, patched)
    assert len(set(ended_lengths(unpatched))) > 1, "rows must end at different steps"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_row_criteria_without_eos(architecture):
    # Without an EOS criterion ended rows keep real tokens: padding them would differ.
    inputs = padded_inputs()
    unpatched, patched = both(shared(architecture), **inputs, stopping_criteria=[RowLengths(WIDTH, [3, 9, 5, 6])])
    assert torch.equal(unpatched, patched)
    assert unpatched.shape[1] == WIDTH + 9
    assert not (unpatched[0, WIDTH + 3 :] == PAD).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_after_a_forced_mode(architecture):
    # Greedy from the mode token on equals the unpatched model that finds it at the end of its prompt.
    model, inputs = shared(architecture), padded_inputs()
    with ak.patched(model, MODES):
        forced = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=None, mode="slow")
    ids = torch.cat([inputs["input_ids"], torch.full((4, 1), SLOW)], 1)
    mask = torch.cat([inputs["attention_mask"], torch.ones(4, 1, dtype=torch.long)], 1)
    expected = model.generate(ids, attention_mask=mask, max_new_tokens=NEW - 1, do_sample=False, eos_token_id=None)
    assert torch.equal(forced, expected)


@pytest.mark.full
@pytest.mark.parametrize("architecture", DECODER_ONLY)
@pytest.mark.parametrize("samples", [1, 3])
def test_top_k_of_one_is_greedy(architecture, samples):
    arguments = {"do_sample": True, "top_k": 1, "num_return_sequences": samples}
    unpatched, patched = both(shared(architecture), **padded_inputs(), **arguments)
    assert torch.equal(unpatched, patched)


@pytest.mark.full
@pytest.mark.parametrize("architecture", DECODER_ONLY)
@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_row_criteria_with_eos(architecture, rows, padded):
    model = shared(architecture)
    inputs = padded_inputs(rows) if padded else {"input_ids": prompts(rows, WIDTH)}
    eos = emitted(model, inputs, rows - 1, 7)
    criteria = [RowLengths(WIDTH, [3, 9, 5, 6][:rows])]
    unpatched, patched = both(model, **inputs, eos_token_id=eos, stopping_criteria=criteria)
    assert torch.equal(unpatched, patched)


class TestStopRules:
    @pytest.fixture
    def model(self):
        return shared("qwen3")

    def test_eos_with_row_criteria(self, model):
        inputs = padded_inputs()
        eos = emitted(model, inputs, 1, 7)
        unpatched, patched = both(
            model, **inputs, eos_token_id=eos, stopping_criteria=[RowLengths(WIDTH, [3, 12, 5, 6])]
        )
        assert torch.equal(unpatched, patched)
        assert ended_lengths(unpatched) == [3, 8, 5, 6]

    @pytest.mark.parametrize(("seconds", "new"), [(1e-9, 1), (1000.0, NEW)])
    def test_max_time(self, model, seconds, new):
        unpatched, patched = both(model, **padded_inputs(), max_time=seconds)
        assert torch.equal(unpatched, patched)
        assert patched.shape[1] == WIDTH + new

    @pytest.mark.parametrize("with_eos", [False, True])
    def test_stop_strings(self, model, with_eos):
        inputs, tokenizer = padded_inputs(), char_tokenizer()
        free = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
        stops = [tokenizer.decode(free[0, WIDTH + 3 : WIDTH + 5]), tokenizer.decode(free[2, WIDTH + 8 : WIDTH + 9])]
        eos = emitted(model, inputs, 3, 1) if with_eos else None
        unpatched, patched = both(model, **inputs, stop_strings=stops, tokenizer=tokenizer, eos_token_id=eos)
        assert torch.equal(unpatched, patched)
        if with_eos:
            assert ended_lengths(patched)[0] == 5

    def test_min_new_tokens(self, model):
        inputs = padded_inputs()
        eos = emitted(model, inputs, 0, 2)
        unpatched, patched = both(model, **inputs, eos_token_id=eos, min_new_tokens=6)
        assert torch.equal(unpatched, patched)
        assert min(ended_lengths(patched)) >= 6

    def test_max_length_and_default_length(self, model):
        unpatched, patched = both(model, **padded_inputs(), max_new_tokens=None, max_length=WIDTH + 4)
        assert torch.equal(unpatched, patched) and patched.shape[1] == WIDTH + 4
        unpatched, patched = both(model, **padded_inputs(), max_new_tokens=None)
        assert torch.equal(unpatched, patched)

    def test_all_rows_end_at_once(self, model):
        unpatched, patched = both(model, **padded_inputs(), stopping_criteria=[RowLengths(WIDTH, [1] * 4)])
        assert torch.equal(unpatched, patched) and patched.shape[1] == WIDTH + 1

    def test_no_prompt_at_all(self, model):
        unpatched, patched = both(model)
        assert torch.equal(unpatched, patched) and patched.shape[0] == 1

    def test_bfloat16(self):
        # One batch size, one loop shape: even rounding must be the same.
        unpatched, patched = both(build("llama").to(torch.bfloat16), **padded_inputs())
        assert torch.equal(unpatched, patched)

    def test_ended_rows_get_the_configured_pad(self, model):
        inputs = padded_inputs()
        eos = emitted(model, inputs, 0, 2)
        unpatched, patched = both(model, **inputs, eos_token_id=eos, pad_token_id=77)
        assert torch.equal(unpatched, patched) and 77 in patched[0, WIDTH:]


PROCESSORS = {
    "repetition_penalty": {"repetition_penalty": 1.5},
    "no_repeat_ngram": {"no_repeat_ngram_size": 2},
    "bad_words": {"bad_words_ids": [[11], [20, 21]]},
    "sequence_bias": {"sequence_bias": {(12,): 5.0, (40, 41): -3.0}},
    "suppress": {"suppress_tokens": list(range(10, 30)), "begin_suppress_tokens": [31, 32]},
    "exponential_decay": {"exponential_decay_length_penalty": (3, 1.6), "eos_token_id": 1},
    "forced_eos": {"forced_eos_token_id": 1, "eos_token_id": 1},
    "forced_bos": {"forced_bos_token_id": 2},
    "min_length": {"min_length": WIDTH + 4, "eos_token_id": 1},
    "renormalize": {"renormalize_logits": True, "remove_invalid_values": True},
    "guidance": {"guidance_scale": 1.7},
    "prefix_allowed": {"prefix_allowed_tokens_fn": lambda row, ids: [10 + 2 * row, 50 + row, 60]},
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_logits_processors(name):
    # Guidance ignores padding, and a forced BOS needs a prompt of one token.
    width = {"guidance": WIDTH, "forced_bos": 1}.get(name)
    inputs = padded_inputs(3) if width is None else {"input_ids": prompts(3, width)}
    model = shared("mistral")
    # These two know rows by their place in the batch.
    plan = "sample_only" if name in ("guidance", "prefix_allowed") else "full"
    unpatched, patched = both(model, plan, **inputs, **PROCESSORS[name])
    assert torch.equal(unpatched, patched)
    if name not in ("renormalize", "min_length"):
        plain = both(model, **inputs)[0]
        assert not torch.equal(plain, unpatched), "the setting must change something"
