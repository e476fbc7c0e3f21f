"""mode_sample's shapes, memory layouts and log-probs."""

import math

import mode_sample_oracle as oracle
import numpy as np
import pytest
import torch
from mode_sample_cases import DTYPES, ROWS, row

import adapt_kernels as ak

MODES = ak.Modes(fast=5, slow=6)
FILTERS = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.01}


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def batch(count, vocab_size=100, dtype=torch.float32, seed=0):
    return (torch.randn(count, vocab_size, generator=torch.Generator().manual_seed(seed)) * 2).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [0, 1, 64, 131, 512])
def test_every_field_has_its_shape_and_dtype(sample, backend, count, dtype):
    if dtype == torch.float64 and backend != "reference":
        pytest.skip("only the reference backend takes float64 logits")
    s = sample(batch(count, dtype=dtype), modes=MODES, at_mode=torch.arange(count) % 2 == 0, seeds=1)
    real = torch.float64 if dtype == torch.float64 else torch.float32
    wanted = dict.fromkeys(s._fields, real) | {
        "tokens": torch.int64,
        "modes": torch.int8,
        "kept": torch.int32,
        "flags": torch.int32,
    }
    assert {name: value.dtype for name, value in s._asdict().items()} == wanted
    assert s.mode_probs.shape == (count, 2)
    assert all(value.shape == (count,) for name, value in s._asdict().items() if name != "mode_probs")


def test_without_modes_there_are_none(sample):
    s = sample(batch(3), seeds=1)
    assert s.modes.tolist() == [-1] * 3
    assert s.mode_probs.shape == (3, 0)


@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (4, 0), (1, 1)], ids=str)
def test_three_dimensions_equal_the_flat_call(sample, shape):
    logits = batch(math.prod(shape)).view(*shape, 100)
    count = math.prod(shape)
    at_mode, seeds = torch.arange(count) % 3 == 0, torch.arange(count)
    s = sample(logits, modes=MODES, at_mode=at_mode.view(shape), seeds=seeds.view(shape), **FILTERS)
    flat = sample(logits.reshape(-1, 100), modes=MODES, at_mode=at_mode, seeds=seeds, **FILTERS)
    assert s.tokens.shape == shape and s.mode_probs.shape == (*shape, 2)
    assert same([x.flatten(0, 1) for x in s], flat)


def test_an_entry_per_batch_row_counts_for_its_whole_sequence(sample):
    logits = batch(12).view(3, 4, 100)
    per_row = torch.tensor([1, 5, 0])
    s = sample(logits, top_k=per_row, seeds=1)
    assert same(s, sample(logits, top_k=per_row[:, None].expand(3, 4), seeds=1))
    assert s.kept.tolist() == [[1] * 4, [5] * 4, [100] * 4]


def strided(logits):
    room = torch.full((logits.shape[0], logits.shape[1] + 7), torch.nan, dtype=logits.dtype)
    room[:, : logits.shape[1]] = logits
    return room[:, : logits.shape[1]]


def odd_offset(logits):
    room = torch.full((logits.numel() + 3,), torch.nan, dtype=logits.dtype)
    room[1 : 1 + logits.numel()] = logits.reshape(-1)
    return room[1 : 1 + logits.numel()].view(logits.shape)


def odd_offset_and_stride(logits):
    rows, columns = logits.shape
    room = torch.full((rows, columns + 5), torch.nan, dtype=logits.dtype)
    room[:, 3 : 3 + columns] = logits
    return room[:, 3 : 3 + columns]


def every_other_row(logits):
    return logits.repeat_interleave(2, 0)[::2]


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("layout", [strided, odd_offset, odd_offset_and_stride, every_other_row])
@pytest.mark.parametrize("vocab_size", [31, 129, 1000])
def test_layout_does_not_matter(sample, vocab_size, layout, dtype):
    logits = batch(9, vocab_size, dtype)
    settings = {**FILTERS, "modes": MODES, "at_mode": torch.arange(9) == 4, "seeds": 3}
    assert same(sample(layout(logits), **settings), sample(logits, **settings))


def test_three_dimensional_strides_do_not_matter(sample):
    logits = batch(12).view(3, 4, 100)
    assert same(sample(logits.transpose(0, 1).contiguous().transpose(0, 1), seeds=3), sample(logits, seeds=3))


def test_rows_of_stride_zero(sample):
    logits = batch(1)
    assert same(sample(logits.expand(6, 100), seeds=3), sample(logits.repeat(6, 1), seeds=3))


@pytest.mark.full
def test_row_offsets_beyond_2_to_the_31(sample):
    room = torch.empty(2**31 + 64, dtype=torch.bfloat16)  # 4 GB of address space, touched at three places
    logits = room.as_strided((3, 64), (2**30, 1))
    logits.copy_(batch(3, 64, torch.bfloat16))
    assert same(sample(logits, seeds=3, **FILTERS), sample(logits.clone(), seeds=3, **FILTERS))


def test_logits_are_only_read(sample):
    logits = batch(8)
    logits[0, 3], logits[1, 4] = math.nan, math.inf
    before = logits.clone()
    sample(logits, modes=MODES, at_mode=True, mode_bias=2.0, seeds=1, **FILTERS)
    assert torch.equal(logits.view(torch.int32), before.view(torch.int32))


def test_no_gradient_is_recorded(sample):
    s = sample(batch(2).requires_grad_(), modes=MODES, seeds=1)
    assert not any(x.requires_grad for x in s)


def check_logprobs(s, logits, settings, tolerance):
    temperature, filters = settings[0], settings[1:]
    for i, z in enumerate(oracle.as_row(z) for z in logits):
        y, token = oracle.tempered(z, temperature), s.tokens[i].item()
        left = np.where(oracle.kept(y, *filters), y, -np.inf)
        wanted = [oracle.log_softmax(x)[token] for x in (left, z, y)]
        got = [s.logprobs[i].item(), s.raw_logprobs[i].item(), s.tempered_logprobs[i].item()]
        # Absolute where log-probs are small, relative where float32 has no more digits.
        assert got == pytest.approx(wanted, abs=tolerance, rel=tolerance), (i, token)
        probs = oracle.mode_probs(z, MODES.token_ids)
        assert s.mode_probs[i].tolist() == pytest.approx(probs.tolist(), abs=tolerance, rel=tolerance)


LOGPROB_SETTINGS = [(1.0, 0, 1.0, 0.0), (0.6, 0, 1.0, 0.0), (3.0, 12, 0.8, 0.05), (1e4, 0, 0.5, 0.0)]
FINITE_ROWS = ["normal", "wide", "zipf", "bimodal", "coarse", "around-12", "range-1e4", "offset-3e4", "equal"]


@pytest.mark.parametrize("settings", LOGPROB_SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logprobs_and_mode_probs(sample, backend, dtype, settings):
    if dtype == torch.float64 and backend != "reference":
        pytest.skip("only the reference backend takes float64 logits")
    logits = torch.stack([row(name, 129, dtype, seed) for name in FINITE_ROWS for seed in range(3)])
    temperature, top_k, top_p, min_p = settings
    s = sample(logits, modes=MODES, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seeds=2)
    check_logprobs(s, logits, settings, 1e-12 if dtype == torch.float64 else 2e-6)


@pytest.mark.parametrize("name", ["wide", "range-1e4", "fp16-max", "subnormal"])
def test_a_forced_token_gets_its_logprobs_however_rare(sample, name):
    logits = row(name, 129)
    s = sample(logits.expand(129, 129), temperature=1.5, forced_tokens=torch.arange(129), seeds=2)
    assert s.tokens.tolist() == list(range(129))
    y = oracle.tempered(oracle.as_row(logits), 1.5)
    np.testing.assert_allclose(s.tempered_logprobs, oracle.log_softmax(y), rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(s.logprobs, oracle.log_softmax(y), rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(s.raw_logprobs, oracle.log_softmax(oracle.as_row(logits)), rtol=2e-6, atol=2e-6)


def test_forcing_the_drawn_token_changes_nothing(sample):
    logits = torch.stack([row(name, 129, seed=4) for name in ROWS if name not in ("half", "lone", "late")])
    settings = {**FILTERS, "modes": MODES, "at_mode": torch.arange(len(logits)) % 2 == 0, "seeds": 6}
    drawn = sample(logits, **settings)
    assert same(sample(logits, forced_tokens=drawn.tokens, **settings), drawn)
    negative = torch.full_like(drawn.tokens, -100)
    assert same(sample(logits, forced_tokens=negative, **settings), drawn)


def test_a_forced_token_outside_the_kept_set_has_no_probability(sample):
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    s = sample(logits, top_k=2, forced_tokens=3, seeds=1)
    assert (s.tokens.item(), s.logprobs.item(), s.kept.item()) == (3, -math.inf, 2)
    assert s.raw_logprobs.item() == pytest.approx(torch.log_softmax(logits, -1)[0, 3].item(), abs=2e-6)


def test_forced_and_drawn_rows_mix(sample):
    logits = batch(6)
    free = sample(logits, seeds=1).tokens
    forced = torch.tensor([9, -1, 9, -1, -1, 99])
    assert (
        sample(logits, forced_tokens=forced, seeds=1).tokens.tolist() == torch.where(forced < 0, free, forced).tolist()
    )


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_temperature_zero_is_the_lowest_id_argmax(sample, dtype):
    logits = torch.stack([row(name, 129, dtype, seed) for name in ("coarse", "equal", "normal") for seed in range(5)])
    s = sample(logits, temperature=0.0, top_k=5, top_p=0.5, min_p=0.1, seeds=2)
    for i, y in enumerate(oracle.tempered(oracle.as_row(z)) for z in logits):
        assert s.tokens[i] == y.argmax()
        assert s.tempered_logprobs[i].item() == pytest.approx(oracle.log_softmax(y)[y.argmax()], abs=2e-6)
    assert s.kept.eq(1).all() and s.logprobs.eq(0).all()
    assert torch.equal(s.tempered_logprobs, s.raw_logprobs)
