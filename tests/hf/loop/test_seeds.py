"""A row's tokens are a function of its logits and its seed: alone, in a batch, in any slot."""

import pytest
import torch
from recorders import RowLengths
from tiny_models import FAST, PAD, SLOW, VOCAB, left_padded, prompts, shared

import adapt_kernels as ak

MODES = ak.Modes(fast=FAST, slow=SLOW)
WIDTH, NEW = 6, 12
ROW_SEEDS = torch.tensor([3, -8, 2**40 + 1, 3, 0, 77, 2**62, -(2**63)])
CASES = {
    "free": {},
    "filtered": {"temperature": 0.8, "top_k": 30, "top_p": 0.95},
    "gated": {"mode_bias": 0.5},
    "exact": {"fast_prob": 0.5},
    "processors": {"repetition_penalty": 1.3, "typical_p": 0.9},
}


@pytest.fixture(scope="module")
def model():
    with ak.patched(shared("llama"), MODES) as patched:
        yield patched


def sample(model, ids, seed, **arguments):
    arguments = {"max_new_tokens": NEW, "do_sample": True, "top_k": 0, "eos_token_id": None, **arguments}
    return model.generate(ids, seed=seed, **arguments)[:, ids.shape[1] :]


@pytest.mark.parametrize("name", CASES)
def test_alone_and_in_a_batch_of_8(model, name):
    ids = prompts(8, WIDTH)
    batch = sample(model, ids, ROW_SEEDS, **CASES[name])
    for row in range(8):
        alone = sample(model, ids[row : row + 1], ROW_SEEDS[row : row + 1], **CASES[name])
        assert torch.equal(alone[0], batch[row])


@pytest.mark.parametrize("name", CASES)
def test_in_another_slot(model, name):
    ids, order = prompts(8, WIDTH), torch.tensor([5, 2, 7, 0, 3, 1, 6, 4])
    batch = sample(model, ids, ROW_SEEDS, **CASES[name])
    assert torch.equal(sample(model, ids[order], ROW_SEEDS[order], **CASES[name]), batch[order])


def test_beside_rows_that_end_earlier(model):
    ids = prompts(8, WIDTH)
    lengths = [NEW, 2, 5, NEW, 1, 3, 8, 4]
    whole = sample(model, ids, ROW_SEEDS)
    # An EOS that no row draws: it is there to make ended rows pad.
    eos = next(i for i in range(VOCAB) if i not in whole)
    ended = sample(model, ids, ROW_SEEDS, eos_token_id=eos, stopping_criteria=[RowLengths(WIDTH, lengths)])
    for row, length in enumerate(lengths):
        assert torch.equal(ended[row, :length], whole[row, :length])
        assert (ended[row, length:] == PAD).all()


def test_left_padding_does_not_change_a_row(model):
    ids = prompts(4, WIDTH)
    padded = left_padded(ids, [6, 3, 2, 5])
    batch = sample(model, padded["input_ids"], ROW_SEEDS[:4], attention_mask=padded["attention_mask"])
    alone = sample(model, ids[1:2, 3:], ROW_SEEDS[1:2])
    assert torch.equal(batch[1], alone[0])


def test_equal_seeds_draw_equal_rows_and_others_differ(model):
    ids = prompts(1, WIDTH).expand(4, -1)
    rows = sample(model, ids, torch.tensor([9, 9, 10, 11]))
    assert torch.equal(rows[0], rows[1])
    assert len({tuple(row) for row in rows.tolist()}) == 3


def test_int_seed_is_row_seed_of_each_row(model):
    ids = prompts(3, WIDTH)
    expected = sample(model, ids, torch.tensor([ak.row_seed(7, i) for i in range(3)]))
    assert ak.row_seed(7, 0) == 7
    assert torch.equal(sample(model, ids, 7), expected)
    assert torch.equal(sample(model, ids, torch.tensor(7)), expected)
    assert torch.equal(sample(model, ids, [ak.row_seed(7, i) for i in range(3)]), expected)


def test_int_seed_counts_rows_not_prompts(model):
    ids = prompts(2, WIDTH)
    expected = sample(model, ids.repeat_interleave(3, 0), torch.tensor([ak.row_seed(7, i) for i in range(6)]))
    assert torch.equal(sample(model, ids, 7, num_return_sequences=3), expected)


def test_seed_per_prompt_gives_its_samples_row_seeds_of_it(model):
    ids = prompts(2, WIDTH)
    seeds = torch.tensor([ak.row_seed(s, j) for s in (40, 50) for j in range(3)])
    expected = sample(model, ids, seeds, num_return_sequences=3)
    assert torch.equal(sample(model, ids, [40, 50], num_return_sequences=3), expected)
    assert len({tuple(row) for row in expected[:3].tolist()}) == 3


def test_no_seed_takes_one_from_the_default_generator(model):
    ids = prompts(3, WIDTH)
    torch.manual_seed(1)
    first, second = sample(model, ids, None), sample(model, ids, None)
    torch.manual_seed(1)
    assert torch.equal(sample(model, ids, None), first)
    assert not torch.equal(first, second)


def test_a_given_seed_leaves_the_default_generator_alone(model):
    before = torch.get_rng_state()
    sample(model, prompts(2, WIDTH), 3, mode="auto")
    assert torch.equal(torch.get_rng_state(), before)


def test_steps_and_rows_draw_different_noise(model):
    # Uniform logits: equal noise at two steps, or in two rows, would show as equal tokens.
    ids = prompts(1, WIDTH).expand(64, -1)
    uniform = {"temperature": 1e6}
    tokens = sample(model, ids, 12, **uniform)
    assert len({tuple(row) for row in tokens.tolist()}) == 64
    repeats = (tokens[:, 1:] == tokens[:, :-1]).float().mean()
    assert repeats < 5 / 97
