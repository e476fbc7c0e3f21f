"""What mode_sample draws, over fixed seed lists: against Hugging Face's own filters, mode rows, the tail."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

# One family-wise error of 1 % over the p-values that this file holds against it; no test is ever repeated.
ALPHA = 0.01 / 80
SEEDS = range(250)
PER_SEED = 800
VOCAB = 150

# name: (temperature, top_k, top_p, min_p)
SETTINGS = {
    "T=.7": (0.7, 0, 1.0, 0.0),
    "k=40 p=.9": (1.0, 40, 0.9, 0.0),
    "T=1.4 k=100 p=.95 min_p=.02": (1.4, 100, 0.95, 0.02),
}
MORE_SETTINGS = {
    "T=1": (1.0, 0, 1.0, 0.0),
    "p=.5": (1.0, 0, 0.5, 0.0),
    "p=.99": (1.0, 0, 0.99, 0.0),
    "k=5": (1.0, 5, 1.0, 0.0),
    "min_p=.1": (1.0, 0, 1.0, 0.1),
    "T=.5 p=.95": (0.5, 0, 0.95, 0.0),
    "T=3 k=120 min_p=.05": (3.0, 120, 1.0, 0.05),
}
EVERY = [*SETTINGS, *(pytest.param(name, marks=pytest.mark.full) for name in MORE_SETTINGS)]


def logits_row(vocab_size=VOCAB, seed=0):
    return torch.randn(1, vocab_size, generator=torch.Generator().manual_seed(seed)) * 1.5


def keywords(name):
    return dict(zip(("temperature", "top_k", "top_p", "min_p"), {**SETTINGS, **MORE_SETTINGS}[name], strict=True))


def hugging_face_probs(logits, temperature, top_k, top_p, min_p):
    """softmax(processors(...)) with transformers' own classes, in the order of `_get_logits_processor`."""
    chain = [TemperatureLogitsWarper(temperature)] if temperature != 1 else []
    chain += [TopKLogitsWarper(top_k)] if top_k else []
    chain += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    chain += [MinPLogitsWarper(min_p)] if min_p else []
    scores = logits
    for processor in chain:
        scores = processor(torch.zeros(1, 1, dtype=torch.int64), scores)
    return scores.double().softmax(-1)[0].numpy()


def pooled(counts, probs, least=5):
    """Counts and expectations, the rarest cells merged into one that expects at least `least`."""
    order = np.argsort(probs)
    counts, expected = counts[order], probs[order] * counts.sum()
    # The merged cell ends where its sum suffices and every later cell suffices alone.
    end = max(int(np.searchsorted(np.cumsum(expected), least)) + 1, int(np.searchsorted(expected, least)))
    return [np.concatenate([[x[:end].sum()], x[end:]]) for x in (counts, expected)]


def chi_square(counts, probs):
    return stats.chisquare(*pooled(counts, probs)).pvalue


@pytest.fixture(scope="module")
def counts_of(sample):
    """Token counts [seeds, V] of one setting, drawn once: PER_SEED rows for each int seed of SEEDS."""
    drawn = {}

    def counts_of(name):
        if name not in drawn:
            many = logits_row().expand(PER_SEED, VOCAB)
            tokens = [sample(many, seeds=seed, **keywords(name)).tokens for seed in SEEDS]
            drawn[name] = np.stack([np.bincount(t, minlength=VOCAB) for t in tokens])
        return drawn[name]

    return counts_of


@pytest.mark.parametrize("name", EVERY)
def test_draws_follow_hugging_faces_distribution(counts_of, name):
    probs, counts = hugging_face_probs(logits_row(), **keywords(name)), counts_of(name).sum(0)
    assert counts.sum() >= 200_000 and (probs > 0).sum() > 4
    assert counts[probs == 0].sum() == 0, "a filtered token was drawn"
    assert chi_square(counts, probs) > ALPHA


@pytest.mark.parametrize("name", EVERY)
def test_p_values_over_the_seeds_are_uniform(counts_of, name):
    probs = hugging_face_probs(logits_row(), **keywords(name))
    p_values = [chi_square(counts, probs) for counts in counts_of(name)]
    assert stats.kstest(p_values, "uniform").pvalue > ALPHA
    assert min(p_values) > ALPHA / len(p_values)


@pytest.mark.parametrize("name", [*SETTINGS, *MORE_SETTINGS])
@pytest.mark.parametrize("seed", range(5))
def test_support_and_probabilities_equal_hugging_faces(sample, name, seed):
    logits = logits_row(seed=seed)
    probs = hugging_face_probs(logits, **keywords(name))
    s = sample(logits.expand(VOCAB, VOCAB), forced_tokens=torch.arange(VOCAB), seeds=1, **keywords(name))
    assert np.array_equal((s.logprobs > -math.inf).numpy(), probs > 0)
    # Hugging Face tempers in float32.
    np.testing.assert_allclose(s.logprobs.double().exp(), probs, rtol=1e-5, atol=1e-12)


def test_two_mode_rows_pass_a_g_test(sample):
    """100,000 mode tokens over four biases, with both modes in one group of ids and in two."""
    logits, values = logits_row(seed=3), (-2.0, 0.0, 1.0, 4.0)
    settings = {"at_mode": True, "mode_bias": torch.tensor(values).repeat_interleave(250), "temperature": 1.3}
    observed, expected = [], []
    for ids in ((5, 6), (5, 149)):
        calls = [sample(logits.expand(1000, VOCAB), modes=ids, seeds=seed, **settings).modes for seed in range(50)]
        slow = torch.stack(calls).view(-1, 4, 250).sum((0, 2))
        z = logits[0, list(ids)].double()
        p = torch.sigmoid((z[1] - z[0] - torch.tensor(values)) / 1.3)
        observed += [12_500 - slow, slow]
        expected += [12_500 * (1 - p), 12_500 * p]
    observed, expected = torch.cat(observed).double(), torch.cat(expected)
    assert observed.sum() == 100_000
    assert stats.chi2.sf(2 * (observed * (observed / expected).log()).sum(), df=8) > ALPHA


FAST_TEMPERATURES = (0.0, 0.3, 1.0, 5.0)


@pytest.mark.parametrize("draws", [100_000, pytest.param(400_000, marks=pytest.mark.full)])
def test_fast_prob_is_drawn_at_its_rate_at_any_temperature(sample, draws):
    logits, ids, p = logits_row(seed=4), (5, 149, 17), 0.3
    temperature = torch.tensor(FAST_TEMPERATURES, dtype=torch.float64).repeat_interleave(250)
    modes = torch.stack(
        [
            sample(
                logits.expand(1000, VOCAB), modes=ids, at_mode=True, fast_prob=p, temperature=temperature, seeds=seed
            ).modes
            for seed in range(draws // 1000)
        ]
    ).view(-1, 4, 250)
    fast = (modes == 0).sum().item()
    assert stats.norm.sf(abs(fast - draws * p) / math.sqrt(draws * p * (1 - p))) * 2 > ALPHA
    for i, t in enumerate(FAST_TEMPERATURES):
        counts = np.bincount(modes[:, i].flatten(), minlength=3)
        others = torch.softmax(logits[0, [149, 17]].double() / (t or 1.0), 0).numpy()
        assert stats.binomtest(int(counts[0]), int(counts.sum()), p).pvalue > ALPHA, t
        assert stats.binomtest(int(counts[1]), int(counts[1:].sum()), others[0]).pvalue > ALPHA, t


@pytest.mark.parametrize("draws", [100_000, pytest.param(1_000_000, marks=pytest.mark.full)])
def test_tokens_10_to_15_nats_below_the_maximum_come_at_their_rate(sample, draws):
    logits = torch.full((1, 256), 0.0)
    gaps = torch.linspace(10, 15, 255)[torch.randperm(255, generator=torch.Generator().manual_seed(1))]
    logits[0, 1:] = -gaps
    counts = np.zeros(256)
    for seed in range(draws // 1000):
        counts += np.bincount(sample(logits.expand(1000, 256), seeds=seed).tokens, minlength=256)
    probs = logits[0].double().softmax(0).numpy()
    drop = -logits[0].numpy()
    # The same group of ids as the maximum (token noise decides) and the other one (group noise decides).
    for inside in (np.arange(256) < 128, np.arange(256) >= 128):
        for low, high in ((10, 11), (11, 12), (12, 15.01)):
            cell = inside & (drop >= low) & (drop < high)
            test = stats.binomtest(int(counts[cell].sum()), draws, probs[cell].sum())
            assert test.pvalue > ALPHA, (low, high, counts[cell].sum(), draws * probs[cell].sum())


@pytest.mark.parametrize("vocab_size", [4, 512], ids=["token noise", "group noise"])
def test_neighbouring_steps_and_rows_draw_independently(sample, vocab_size):
    # Four equal classes: four tokens of one group, or four groups of 128.
    logits = torch.zeros(1, vocab_size).expand(6000, vocab_size)
    first, second = (sample(logits, seeds=3, step=step).tokens * 4 // vocab_size for step in (0, 1))
    for a, b in ((first, second), (first[:-1], first[1:])):
        table = np.bincount(a * 4 + b, minlength=16).reshape(4, 4)
        assert stats.chi2_contingency(table).pvalue > ALPHA


def test_row_seeds_and_neighbouring_seeds_draw_uniformly(sample):
    logits = torch.zeros(1, 64).expand(10_000, 64)
    for seeds in (5, torch.arange(10_000), torch.arange(10_000) * 2**32, torch.arange(10_000) - 2**63):
        assert stats.chisquare(np.bincount(sample(logits, seeds=seeds).tokens, minlength=64)).pvalue > ALPHA
