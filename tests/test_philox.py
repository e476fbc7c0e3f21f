"""The frozen random stream: known answers, torch and NumPy bit for bit, noise against exact arithmetic, statistics."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from scipy import stats

import adapt_kernels as ak
from adapt_kernels import philox, philox_reference
from adapt_kernels.philox_reference import PURPOSE_GROUP, PURPOSE_TOKEN

# Every p-value of this file is held against one family-wise error of 1 %.
ALPHA = 0.01 / 8
LOW32 = 0xFFFFFFFF

# Random123's kat_vectors, philox4x32 10.
KNOWN_ANSWERS = {
    "zeros": (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    "ones": (
        (LOW32,) * 4,
        (LOW32,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    "pi": (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
}
EDGE_SEEDS = [0, 1, -1, 7, -(2**63), 2**63 - 1, 2**62 + 1, 2**62 + 12345678901, -(2**62) - 3, 2**32, 2**32 - 1]
EDGE_ITEMS = [0, 1, 127, 128, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**40 + 5, 2**63 - 1]
EDGE_STEPS = [0, 1, 2, 1000, 2**31 - 1, 2**31, 2**32 - 1]
# Frozen with the first release: a change here is a breaking one.
GOLDEN_ROW_SEEDS = {
    0: [0, -2152535657050944081, 7960286522194355700, 487617019471545679],
    -5: [-5, -9134035147564400384, 8984114170177588206, 2135897630596589244],
}
GOLDEN_GROUP_BITS = [17609208879932635612, 7507094428659989523, 112066348307839924]
GOLDEN_TOKEN_BITS = [17645354256374152962, 17506082132707188120, 1290867622720525782]
GOLDEN_NOISE = [-0.6005279577340852, -0.29678417670978363, -0.7083934627845314]
GOLDEN_TOKENS = [151, 188, 250, 27, 163, 271, 251, 32, 223, 146, 272, 159]
WORDS = [0, 1, 2**64 - 1, *(2**k for k in range(1, 64)), *(2**64 - 2**k for k in range(1, 64, 7)), 0x123456789ABCDEF0]


def signed(value):
    return (value + 2**63) % 2**64 - 2**63


def python_bits(seed, step, purpose, item):
    """Philox4x32-10 in Python integers, from the paper's description."""
    c = [item & LOW32, item >> 32 & LOW32, step & LOW32, purpose]
    k = [seed & LOW32, seed >> 32 & LOW32]
    for _ in range(10):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [p1 >> 32 ^ c[1] ^ k[0], p1 & LOW32, p0 >> 32 ^ c[3] ^ k[1], p0 & LOW32]
        k = [(k[0] + 0x9E3779B9) & LOW32, (k[1] + 0xBB67AE85) & LOW32]
    return c[0] << 32 | c[1]


def torch_bits(seed, step, purpose, item):
    high, low = philox.random_words(*(torch.as_tensor(x) for x in (seed, step)), purpose, torch.as_tensor(item))
    return (high.numpy().astype(np.uint64) << np.uint64(32)) | low.numpy().astype(np.uint64)


def edge_grid():
    grid = np.meshgrid(*(np.array(x, dtype=np.int64) for x in (EDGE_SEEDS, EDGE_STEPS, EDGE_ITEMS)), indexing="ij")
    return [axis.reshape(-1) for axis in grid]


@pytest.mark.parametrize("name", KNOWN_ANSWERS)
def test_random123_known_answers(name):
    counter, key, words = KNOWN_ANSWERS[name]
    assert tuple(int(word) for word in philox_reference.philox4x32(counter, key)) == words
    item, seed = (signed(pair[0] | pair[1] << 32) for pair in (counter[:2], key))
    bits = words[0] << 32 | words[1]
    assert int(philox_reference.random_bits(seed, counter[2], counter[3], item)) == bits
    assert int(torch_bits(seed, counter[2], counter[3], item)) == bits


@pytest.mark.parametrize("purpose", [PURPOSE_GROUP, PURPOSE_TOKEN])
def test_torch_and_numpy_give_the_bits_of_plain_python(purpose):
    seed, step, item = edge_grid()
    wanted = [python_bits(s, t, purpose, i) for s, t, i in zip(*(axis.tolist() for axis in edge_grid()), strict=True)]
    wanted = np.array(wanted, dtype=np.uint64)
    assert np.array_equal(philox_reference.random_bits(seed, step, purpose, item), wanted)
    assert np.array_equal(torch_bits(seed, step, purpose, item), wanted)


def test_torch_and_numpy_give_equal_bits_on_random_counters():
    rng = np.random.default_rng(11)
    seed, item = rng.integers(-(2**63), 2**63 - 1, (2, 50_000))
    step = rng.integers(0, 2**32, 50_000)
    assert np.array_equal(philox_reference.random_bits(seed, step, 1, item), torch_bits(seed, step, 1, item))


def test_python_integers_of_64_bits_equal_their_signed_form():
    for seed in (2**63, 2**64 - 1, 2**63 + 2**62 + 9):
        assert philox_reference.random_bits(seed, 3, 0, 5) == philox_reference.random_bits(signed(seed), 3, 0, 5)


def test_torch_and_numpy_noise_agree():
    seed, step, item = edge_grid()
    ours = philox.gumbel(*(torch.from_numpy(x) for x in (seed, step)), PURPOSE_TOKEN, torch.from_numpy(item))
    # The words are equal; only the log routines may round differently, near noise 0 by an ulp of the inner log's 1.
    wanted = philox_reference.gumbel(seed, step, PURPOSE_TOKEN, item)
    np.testing.assert_allclose(ours.numpy(), wanted, rtol=1e-14, atol=5e-16)


def exact_gumbel(word):
    """-ln(-ln(1 - u)) and du/dg-scaled error of one rounding of u, in 60 digits."""
    with localcontext() as context:
        context.prec = 60
        u = (Decimal(word) + Decimal("0.5")) / 2**64
        u = min(u, 1 - Decimal(2) ** -53)
        inner = -(1 - u).ln()
        rounding = float(Decimal(2) ** -53 * u / ((1 - u) * inner))
        return float(-inner.ln()), rounding


@pytest.mark.parametrize("word", WORDS, ids=hex)
def test_noise_of_extreme_words_is_exact(word):
    wanted, rounding = exact_gumbel(word)
    noise = float(philox_reference.gumbel_from_bits(np.uint64(word)))
    # float64 holds u to 2**-53; near u = 1 that alone moves the noise, everywhere else nothing does.
    assert math.isfinite(noise)
    assert abs(noise - wanted) <= 1e-14 * max(1, abs(wanted)) + 2 * rounding


@pytest.mark.parametrize("word", WORDS, ids=hex)
def test_torch_noise_of_extreme_words_is_the_published_one(word, monkeypatch):
    pair = torch.tensor([word >> 32]), torch.tensor([word & LOW32])
    monkeypatch.setattr(philox, "random_words", lambda *_: pair)
    zero = torch.zeros(1, dtype=torch.int64)
    noise = philox.gumbel(zero, zero, PURPOSE_TOKEN, zero)
    np.testing.assert_allclose(noise.numpy(), philox_reference.gumbel_from_bits(np.uint64(word)), rtol=1e-14)


def test_noise_reaches_45_and_stays_finite_at_both_ends():
    assert philox_reference.gumbel_from_bits(np.uint64(0)) == pytest.approx(65 * math.log(2), abs=1e-12)
    lowest = philox_reference.gumbel_from_bits(np.uint64(2**64 - 1))
    assert lowest == pytest.approx(-math.log(53 * math.log(2)), abs=1e-12)


@pytest.mark.parametrize("seed", [0, 7, -7, 2**63 - 1, -(2**63)])
def test_row_seeds_are_distinct_int64(seed):
    seeds = [ak.row_seed(seed, row) for row in range(100_000)]
    assert seeds[0] == seed
    assert len(set(seeds)) == len(seeds)
    assert all(-(2**63) <= s < 2**63 for s in seeds)
    assert philox.row_seeds(seed, 1000).tolist() == seeds[:1000]


def test_neighbouring_call_seeds_share_no_row_seed():
    seeds = [ak.row_seed(call, row) for call in range(100) for row in range(1000)]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_a_seed_beyond_64_bits_is_refused(seed):
    with pytest.raises(ValueError, match=r"seed.*64 bits"):
        philox.row_seeds(seed, 2)


def test_fresh_seed_follows_torchs_generator():
    torch.manual_seed(5)
    first = [philox.fresh_seed() for _ in range(200)]
    torch.manual_seed(5)
    assert [philox.fresh_seed() for _ in range(200)] == first
    assert len(set(first)) == 200
    # All 64 bits are in use: both signs, and magnitudes beyond 2**62.
    assert min(first) < -(2**62) and max(first) > 2**62


def test_golden_row_seeds():
    assert [ak.row_seed(0, row) for row in range(4)] == GOLDEN_ROW_SEEDS[0]
    assert [ak.row_seed(-5, row) for row in range(4)] == GOLDEN_ROW_SEEDS[-5]
    assert ak.row_seed(2**64 - 5, 3) == ak.row_seed(-5, 3)


def test_golden_bits():
    items = np.arange(3)
    assert philox_reference.random_bits(7, 0, PURPOSE_GROUP, items).tolist() == GOLDEN_GROUP_BITS
    assert philox_reference.random_bits(-7, 2, PURPOSE_TOKEN, items + 2**33).tolist() == GOLDEN_TOKEN_BITS


def test_golden_noise():
    noise = philox_reference.gumbel(7, 0, PURPOSE_TOKEN, np.arange(3))
    np.testing.assert_allclose(noise, GOLDEN_NOISE, rtol=1e-14)


def test_golden_tokens():
    logits = torch.arange(300, dtype=torch.float32).remainder(7).div(2).expand(12, 300)
    seeds = torch.arange(12) * 1_000_003 - 5
    assert ak.mode_sample(logits, seeds=seeds).tokens.tolist() == GOLDEN_TOKENS
    y = logits[0].double().numpy()
    drawn = [philox_reference.draw(y - y.max(), np.ones(300, bool), int(seed)) for seed in seeds]
    assert drawn == GOLDEN_TOKENS


def uniforms(seeds, steps, items, purpose=PURPOSE_TOKEN):
    return philox_reference.random_bits(seeds, steps, purpose, items).astype(np.float64) * 2.0**-64


@pytest.mark.parametrize("shift", [48, 32, 16, 0], ids=["bits63-48", "bits47-32", "bits31-16", "bits15-0"])
def test_every_16_bits_of_the_word_are_uniform(shift):
    bits = philox_reference.random_bits(np.arange(2000)[:, None], 3, PURPOSE_TOKEN, np.arange(500))
    counts = np.bincount(((bits >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.int64).ravel() // 64)
    assert len(counts) == 1024
    assert stats.chisquare(counts).pvalue > ALPHA


@pytest.mark.parametrize("axis", ["step", "item", "seed"])
def test_neighbours_are_uncorrelated(axis):
    seed, step, item = np.meshgrid(np.arange(100), np.arange(100), np.arange(100), indexing="ij")
    u = np.moveaxis(uniforms(seed, step, item), ("seed", "step", "item").index(axis), 0) - 0.5
    # Each product has mean 0 and variance 1/144 if neighbours are independent.
    z = (u[1:] * u[:-1]).sum() * 12 / math.sqrt(u[1:].size)
    assert 2 * stats.norm.sf(abs(z)) > ALPHA


def test_the_noise_is_gumbel():
    noise = philox_reference.gumbel(np.arange(1000)[:, None], 0, PURPOSE_GROUP, np.arange(200)).ravel()
    assert stats.kstest(noise, "gumbel_r").pvalue > ALPHA


def test_no_two_streams_share_their_noise():
    # Two words of 64 bits per stream: one accidental pair among 1e6 streams has probability 1e-27.
    seed, step = np.meshgrid(np.arange(-500, 500), np.arange(1000), indexing="ij")
    first, second = (philox_reference.random_bits(seed, step, PURPOSE_TOKEN, item).ravel() for item in (0, 1))
    order = np.lexsort((second, first))
    same = (np.diff(first[order]) == 0) & (np.diff(second[order]) == 0)
    assert not same.any()


def test_group_and_token_noise_are_different_streams():
    item = np.arange(100_000)
    group, token = (philox_reference.random_bits(9, 0, purpose, item) for purpose in (PURPOSE_GROUP, PURPOSE_TOKEN))
    assert not np.isin(group, token).any()
