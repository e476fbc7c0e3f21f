"""Rows on which samplers divide by zero, subtract infinities or return NaN."""

import itertools
import math

import pytest
import torch
from mode_sample_cases import DTYPES, MIN_PS, TEMPERATURES, TOP_PS

import adapt_kernels as ak
from adapt_kernels import FLAG_EMPTY, FLAG_INF, FLAG_NAN

INF, NAN = math.inf, math.nan
MODES = ak.Modes(fast=1, slow=3)
LN2 = math.log(2)
FILTERED = {"temperature": 0.7, "top_k": 3, "top_p": 0.9, "min_p": 0.01}

# name: (row, tokens that may come, kept, flags, logprobs, raw_logprobs); None = whatever it is
ROWS = {
    "all -inf": ([-INF] * 5, {0}, 0, FLAG_EMPTY, 0.0, -INF),
    "all NaN": ([NAN] * 5, {0}, 0, FLAG_EMPTY | FLAG_NAN, 0.0, -INF),
    "NaN and -inf": ([NAN, -INF, NAN, -INF, -INF], {0}, 0, FLAG_EMPTY | FLAG_NAN, 0.0, -INF),
    "one NaN": ([1.0, NAN, 1.0, -INF, -INF], {0, 2}, 2, FLAG_NAN, -LN2, -LN2),
    "NaN at the lowest id": ([NAN, -INF, 2.0, -INF, -INF], {2}, 1, FLAG_NAN, 0.0, 0.0),
    "one +inf": ([1.0, 5.0, INF, 2.0, 3.0], {2}, 1, FLAG_INF, 0.0, 0.0),
    "two +inf": ([1.0, INF, 0.0, 2.0, INF], {1, 4}, 2, FLAG_INF, -LN2, -LN2),
    "all +inf": ([INF, INF, -INF, -INF, -INF], {0, 1}, 2, FLAG_INF, -LN2, -LN2),
    "+inf and -inf": ([-INF, INF, -INF, 0.0, -INF], {1}, 1, FLAG_INF, 0.0, 0.0),
    "+inf and NaN": ([NAN, INF, 0.0, 0.0, 0.0], {1}, 1, FLAG_INF | FLAG_NAN, 0.0, 0.0),
    "single finite": ([-INF, -INF, -INF, -7.0, -INF], {3}, 1, 0, 0.0, 0.0),
    "two zeros of either sign": ([-0.0, -INF, 0.0, -INF, -INF], {0, 2}, 2, 0, -LN2, -LN2),
    "range 1e4": ([-1e4, 0.0, 1e4, -1e4, 0.0], {2}, None, 0, 0.0, 0.0),
    "offset 3e4": ([3e4, -INF, 3e4, -INF, -INF], {0, 2}, 2, 0, -LN2, -LN2),
    "fp16 max": ([0.0, 65504.0, 0.0, 65504.0, -65504.0], {1, 3}, None, 0, -LN2, -LN2),
}


def same_bits(value, wanted):
    return value == pytest.approx(wanted, abs=2e-6) if math.isfinite(wanted) else value == wanted


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("settings", [{}, FILTERED], ids=["plain", "filtered"])
@pytest.mark.parametrize("name", ROWS)
def test_row(sample, name, settings, dtype):
    values, tokens, kept, flags, logprob, raw = ROWS[name]
    s = sample(torch.tensor([values], dtype=dtype).expand(64, 5), modes=MODES, seeds=5, **settings)
    assert set(s.tokens.tolist()) == tokens
    assert s.flags.tolist() == [flags] * 64
    assert kept is None or s.kept.tolist() == [kept] * 64
    assert all(same_bits(value, logprob) for value in s.logprobs.tolist())
    assert all(same_bits(value, raw) for value in s.raw_logprobs.tolist())
    # In every row of the table the likely tokens tie, so the temperature moves nothing.
    assert all(same_bits(value, raw) for value in s.tempered_logprobs.tolist())
    assert not s.mode_probs.isnan().any()


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("name", ROWS)
def test_row_at_temperature_zero(sample, name, dtype):
    values, tokens, kept, flags, _, raw = ROWS[name]
    s = sample(torch.tensor([values], dtype=dtype), temperature=0.0, seeds=5)
    assert s.tokens.item() == min(tokens)
    assert (s.kept.item(), s.flags.item(), s.logprobs.item()) == (min(1, kept or 1) if kept != 0 else 0, flags, 0.0)
    assert same_bits(s.raw_logprobs.item(), raw) and same_bits(s.tempered_logprobs.item(), raw)


def test_mode_probs_of_rows_without_a_mode(sample):
    logits = torch.tensor([[0.0, -INF, 0.0, -INF], [0.0, NAN, 0.0, NAN], [0.0, NAN, 0.0, 2.0], [0.0, INF, 0.0, 2.0]])
    wanted = [[0.0, 0.0], [0.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    assert sample(logits, modes=MODES, seeds=1).mode_probs.tolist() == wanted


# name: (row, bias, the tokens that may come, kept, flags); modes are tokens 1 and 3
BIASED = {
    "+inf on one mode": ([9.0, 0.0, 9.0, 5.0], [INF, 0.0], {1}, 1, 0),
    "+inf on both modes": ([9.0, 0.0, 9.0, 5.0], [INF, INF], {1, 3}, 2, 0),
    "-inf on one mode": ([9.0, 7.0, 9.0, -5.0], [-INF, 0.0], {3}, 1, 0),
    "-inf on both modes": ([9.0, 7.0, 9.0, 5.0], [-INF, -INF], {1}, 0, FLAG_EMPTY),
    "1e9": ([9.0, -7.0, 9.0, 5.0], [1e9, 0.0], {1}, 2, 0),
    "-1e9": ([9.0, 7.0, 9.0, 5.0], [-1e9, 0.0], {3}, 2, 0),
    "+inf on a masked mode": ([9.0, -INF, 9.0, 5.0], [INF, 0.0], {3}, 1, 0),
    "both modes masked": ([9.0, -INF, 9.0, -INF], [3.0, 0.0], {1}, 0, FLAG_EMPTY),
    "both modes NaN": ([9.0, NAN, 9.0, NAN], [3.0, 0.0], {1}, 0, FLAG_EMPTY | FLAG_NAN),
    "+inf logit elsewhere": ([INF, 0.0, 9.0, -INF], [3.0, 0.0], {1}, 1, FLAG_INF),
    "+inf logit on a mode": ([0.0, INF, 9.0, 8.0], [-1e9, 0.0], {1}, 1, FLAG_INF),
    "beyond float32": ([0.0, 3e38, 0.0, 3e38], [3e38, 0.0], {1}, 2, 0),
}


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", BIASED)
def test_extreme_bias_on_a_restricted_row(sample, name, temperature):
    values, bias, tokens, kept, flags = BIASED[name]
    logits = torch.tensor([values]).expand(64, 4)
    s = sample(
        logits, modes=MODES, at_mode=True, mode_bias=torch.tensor(bias).expand(64, 2), temperature=temperature, seeds=5
    )
    assert set(s.tokens.tolist()) == (tokens if temperature else {min(tokens)})
    assert s.kept.tolist() == [min(kept, 1) if temperature == 0 else kept] * 64
    assert s.flags.tolist() == [flags] * 64
    assert not any(x.isnan().any() for x in s if x.is_floating_point())
    if len(tokens) == 1 or temperature == 0:
        assert s.logprobs.eq(0).all()
    if flags & FLAG_EMPTY:
        assert s.tempered_logprobs.eq(-INF).all()


@pytest.mark.parametrize(("only_modes", "token"), [(True, 3), (False, 2)])
def test_an_infinite_negative_bias_beats_an_infinite_logit(sample, only_modes, token):
    logits = torch.tensor([[0.0, INF, 99.0, 8.0]]).expand(16, 4)
    s = sample(logits, modes=MODES, at_mode=True, mode_bias=-INF, only_modes=only_modes, seeds=5)
    assert s.tokens.eq(token).all() and s.flags.eq(FLAG_INF).all()
    assert not any(x.isnan().any() for x in s if x.is_floating_point())


def special_rows(count, vocab_size, generator):
    special = torch.tensor([NAN, INF, -INF, 0.0, -0.0, 65504.0, -65504.0, 1e4, 1e-40])
    logits = torch.randn(count, vocab_size, generator=generator) * 5
    density = torch.rand(count, 1, generator=generator) ** 3
    chosen = torch.randint(len(special), (count, vocab_size), generator=generator)
    return torch.where(torch.rand(count, vocab_size, generator=generator) < density, special[chosen], logits)


def pick(values, count, generator):
    return torch.tensor(values, dtype=torch.float64)[torch.randint(len(values), (count,), generator=generator)]


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("only_modes", [True, False], ids=["only_modes", "all_tokens"])
@pytest.mark.parametrize("mode_ids", [(1, 3), (None, 8), (0, None, 3)], ids=str)
def test_no_output_is_ever_nan(sample, mode_ids, only_modes, dtype):
    g, count = torch.Generator().manual_seed(7), 3000
    logits = special_rows(count, 9, g).to(dtype)
    bias = torch.stack([pick([0.0, 2.0, 1e9, -1e9, INF, -INF], count, g) for _ in mode_ids], 1)
    s = sample(
        logits,
        modes=mode_ids,
        at_mode=torch.rand(count, generator=g) < 0.5,
        mode_bias=bias,
        temperature=pick(TEMPERATURES, count, g),
        top_k=pick([0, 1, 2, 8, 9], count, g).long(),
        top_p=pick(TOP_PS, count, g),
        min_p=pick(MIN_PS, count, g),
        only_modes=only_modes,
        seeds=9,
    )
    check_sane(s, logits, len(mode_ids))


@pytest.mark.parametrize("mode_ids", [(1, 3), (None, 8), (0, None, 3)], ids=str)
def test_no_output_is_ever_nan_with_fast_prob(sample, mode_ids):
    g, count = torch.Generator().manual_seed(8), 3000
    logits = special_rows(count, 9, g)
    s = sample(
        logits,
        modes=mode_ids,
        at_mode=torch.rand(count, generator=g) < 0.8,
        fast_prob=pick([NAN, 1e-9, 0.3, 1 - 1e-9], count, g),
        temperature=pick(TEMPERATURES, count, g),
        seeds=9,
    )
    check_sane(s, logits, len(mode_ids))


def check_sane(s, logits, num_modes):
    for name, value in s._asdict().items():
        assert not value.isnan().any(), name
    assert s.tokens.min() >= 0 and s.tokens.max() < logits.shape[1]
    assert s.modes.min() >= -1 and s.modes.max() < num_modes
    # One ulp above 0 is rounding, more is a wrong normaliser.
    assert all(x.max() <= 1e-6 for x in (s.logprobs, s.raw_logprobs, s.tempered_logprobs))
    total = s.mode_probs.double().sum(1)
    assert (((total - 1).abs() < 1e-6) | (total == 0)).all()
    empty = (s.flags & FLAG_EMPTY) > 0
    assert torch.equal(s.kept == 0, empty)
    assert torch.equal((s.flags & FLAG_NAN) > 0, logits.isnan().any(1))
    assert torch.equal((s.flags & FLAG_INF) > 0, (logits == INF).any(1))
    assert s.logprobs[empty].eq(0).all() and s.tempered_logprobs[empty].eq(-INF).all()
    # A drawn token is possible, unless nothing is.
    assert (s.logprobs[~empty] > -INF).all() and (s.tempered_logprobs[~empty] > -INF).all()


@pytest.mark.parametrize("vocab_size", [1, 2])
def test_the_smallest_vocabularies(sample, vocab_size):
    every = itertools.product([-INF, NAN, INF, 0.0], repeat=vocab_size)
    for values in every:
        s = sample(torch.tensor([values]), temperature=0.5, top_k=1, top_p=0.5, min_p=0.5, seeds=3)
        assert not any(x.isnan().any() for x in s if x.is_floating_point())
        limits = [-INF if math.isnan(v) else v for v in values]
        assert s.tokens.item() in [i for i, v in enumerate(limits) if v == max(limits)]
        assert max(limits) > -INF or s.tokens.item() == 0
