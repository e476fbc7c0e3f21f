"""The gate of mode_sample: which rows are restricted, what the bias moves, exact probabilities, several modes."""

import math

import mode_sample_oracle as oracle
import numpy as np
import pytest
import torch
from mode_sample_cases import row

import adapt_kernels as ak

VOCAB = 300
# name: decision ids; None = any other token. 299 is in the last, partial group of 128.
GATES = {
    "two": (5, 6),
    "far apart": (0, VOCAB - 1),
    "last group": (258, 299),
    "three": (17, 2, 290),
    "other second": (9, None),
    "other first": (None, 9),
    "other of three": (4, None, 299),
}
TEMPERATURES = [0.0, 0.3, 1.0, 5.0]


def logits_of(count, seed=0):
    return torch.randn(count, VOCAB, generator=torch.Generator().manual_seed(seed)) * 2


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def scored(sample, logits, mode_ids, **settings):
    """Log-prob of every token of one row at its mode token -> float64 [V]; and the whole result."""
    count = logits.shape[-1]
    s = sample(
        logits.expand(count, count),
        modes=mode_ids,
        at_mode=True,
        forced_tokens=torch.arange(count),
        seeds=3,
        **settings,
    )
    return s.logprobs.double().numpy(), s


@pytest.mark.parametrize("bias", [0.0, 1.5, -4.0])
@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("gate", GATES)
def test_restricted_row_is_the_softmax_over_the_modes(sample, gate, temperature, bias):
    ids, logits = GATES[gate], logits_of(1)
    z = oracle.as_row(logits[0])
    y = oracle.tempered(oracle.gated(z, ids, [bias] + [0.0] * (len(ids) - 1)), temperature)
    # Filters would cut all but one token here; a restricted row skips them.
    got, s = scored(sample, logits, ids, mode_bias=bias, temperature=temperature, top_k=1, top_p=0.01, min_p=0.99)
    np.testing.assert_allclose(got, oracle.log_softmax(y), rtol=2e-6, atol=2e-6)
    assert torch.equal(s.tempered_logprobs, s.logprobs)
    assert s.kept.eq(int((y > -np.inf).sum())).all()
    np.testing.assert_allclose(s.raw_logprobs, oracle.log_softmax(z), rtol=2e-6, atol=2e-6)
    members = oracle.members(ids, VOCAB)
    wanted = [next((m for m, member in enumerate(members) if member[t]), -1) for t in range(VOCAB)]
    assert s.modes.tolist() == wanted


@pytest.mark.parametrize("gate", GATES)
def test_unrestricted_row_at_its_mode_token_is_biased_and_filtered(sample, gate):
    ids, logits = GATES[gate], logits_of(1, seed=1)
    bias = [3.0, -1.0, 2.0][: len(ids)]
    y = oracle.tempered(oracle.gated(oracle.as_row(logits[0]), ids, bias, only_modes=False), 0.9)
    mask = oracle.kept(y, 40, 0.9, 0.01)
    settings = {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "only_modes": False}
    got, s = scored(sample, logits, ids, mode_bias=torch.tensor(bias).expand(VOCAB, len(ids)), **settings)
    np.testing.assert_allclose(got, oracle.log_softmax(np.where(mask, y, -np.inf)), rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(s.tempered_logprobs, oracle.log_softmax(y), rtol=2e-6, atol=2e-6)
    assert s.kept.eq(int(mask.sum())).all()


@pytest.mark.parametrize("gate", GATES)
def test_mode_probs_ignore_bias_temperature_and_filters(sample, gate):
    ids, logits = GATES[gate], logits_of(6)
    plain = sample(logits, modes=ids, seeds=1).mode_probs
    wanted = np.stack([oracle.mode_probs(oracle.as_row(z), ids) for z in logits])
    np.testing.assert_allclose(plain, wanted, rtol=2e-6, atol=1e-7)
    moved = sample(
        logits, modes=ids, at_mode=torch.arange(6) % 2 == 0, mode_bias=5.0, temperature=0.2, top_k=2, top_p=0.3, seeds=1
    )
    assert torch.equal(moved.mode_probs, plain)
    assert torch.equal(sample(logits, modes=ids, at_mode=True, fast_prob=0.9, seeds=1).mode_probs, plain)


def test_only_rows_at_their_mode_token_are_touched(sample):
    logits = logits_of(64)
    at_mode = torch.arange(64) % 3 == 1
    settings = {"temperature": 0.8, "top_k": 30, "top_p": 0.9, "seeds": torch.arange(64)}
    plain = sample(logits, modes=(5, 6), **settings)
    mixed = sample(logits, modes=(5, 6), at_mode=at_mode, mode_bias=8.0, **settings)
    assert same([x[~at_mode] for x in mixed], [x[~at_mode] for x in plain])
    assert set(mixed.tokens[at_mode].tolist()) <= {5, 6}
    assert torch.equal(mixed.modes[at_mode], (mixed.tokens[at_mode] == 6).to(torch.int8))
    assert mixed.modes[~at_mode].eq(-1).all()


@pytest.mark.parametrize("at_mode", [True, 1, [True] * 4, [1, 1, 1, 1], torch.ones(4, dtype=torch.bool)], ids=repr)
def test_forms_of_at_mode(sample, at_mode):
    wanted = sample(logits_of(4), modes=(5, 6), at_mode=torch.tensor([True] * 4), seeds=2)
    assert same(sample(logits_of(4), modes=(5, 6), at_mode=at_mode, seeds=2), wanted)


@pytest.mark.parametrize("at_mode", [None, False, [False] * 4], ids=repr)
def test_forms_of_no_at_mode(sample, at_mode):
    s = sample(logits_of(4), modes=(5, 6), at_mode=at_mode, mode_bias=100.0, seeds=2)
    plain = sample(logits_of(4), modes=(5, 6), seeds=2)
    assert same(s, plain) and s.modes.eq(-1).all()


NAMED = ak.Modes(fast=5, mid=17, slow=6)


@pytest.mark.parametrize(
    "bias",
    [
        {"fast": 1.5},
        {"fast": torch.tensor([1.5] * 4)},
        torch.full((4,), 1.5),
        [1.5] * 4,
        torch.tensor([[1.5, 0.0, 0.0]] * 4),
        1.5,
    ],
    ids=["dict", "dict of rows", "rows", "list", "rows x modes", "number"],
)
def test_forms_of_the_bias_on_mode_0(sample, bias):
    logits = logits_of(4)
    s = sample(logits, modes=NAMED, at_mode=True, mode_bias=bias, seeds=torch.arange(4))
    z = logits.clone()
    z[:, 5] += 1.5
    wanted = torch.log_softmax(z.double()[:, [5, 17, 6]], 1)
    picked = wanted.gather(1, s.modes.long()[:, None]).squeeze(1)
    torch.testing.assert_close(s.logprobs.double(), picked, rtol=2e-6, atol=2e-6)


def test_a_bias_by_name_reaches_every_mode_and_row(sample):
    logits = logits_of(4)
    rows = torch.tensor([0.0, 1.0, -2.0, 3.0])
    by_name = sample(logits, modes=NAMED, at_mode=True, mode_bias={"slow": rows, "mid": -1.0}, seeds=2)
    matrix = torch.stack([torch.zeros(4), torch.full((4,), -1.0), rows], 1)
    assert same(by_name, sample(logits, modes=NAMED, at_mode=True, mode_bias=matrix, seeds=2))


def test_a_bias_of_batch_and_modes_in_three_dimensions(sample):
    logits = logits_of(6).view(2, 3, VOCAB)
    matrix = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(2))
    s = sample(logits, modes=NAMED, at_mode=True, mode_bias=matrix, seeds=2)
    flat = sample(logits.view(6, -1), modes=NAMED, at_mode=True, mode_bias=matrix.view(6, 3), seeds=2)
    assert same([x.flatten(0, 1) for x in s], flat)


@pytest.mark.parametrize("p", [1e-9, 0.3, 0.5, 0.999])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("gate", GATES)
def test_fast_prob_is_exact_and_the_others_keep_their_proportions(sample, gate, temperature, p):
    ids, logits = GATES[gate], logits_of(1, seed=2)
    got, s = scored(sample, logits, ids, fast_prob=p, temperature=temperature, top_k=1, top_p=0.01)
    members = oracle.members(ids, VOCAB)
    z, prob = oracle.as_row(logits[0]), np.exp(got)
    assert prob[members[0]].sum() == pytest.approx(p, rel=3e-6)
    for group, share in ((members[0], p), (np.any(members[1:], axis=0), 1 - p)):
        inside = oracle.log_softmax(oracle.tempered(np.where(group, z, -np.inf), temperature))
        np.testing.assert_allclose(prob[group], share * np.exp(inside[group]), rtol=2e-5)
    assert prob[~np.any(members, axis=0)].sum() == 0
    assert s.kept.eq(int(np.any(members, axis=0).sum())).all()


def test_fast_prob_of_nan_leaves_a_row_alone(sample):
    logits, seeds = logits_of(4), torch.arange(4)
    p = torch.tensor([0.3, math.nan, 0.3, math.nan])
    settings = {"modes": (5, 6), "seeds": seeds, "temperature": 0.0}
    at_mode = torch.tensor([True, True, False, False])
    s = sample(logits, at_mode=at_mode, fast_prob=p, **settings)
    greedy = sample(logits, at_mode=at_mode, **settings)
    assert same([x[1:] for x in s], [x[1:] for x in greedy])
    assert s.kept.tolist() == [2, 1, 1, 1]


@pytest.mark.parametrize(
    ("values", "probability"), [([0.0, -math.inf, 1.0], 0.3), ([0.0, 1.0, -math.inf], 1.0)], ids=["mode 0", "the rest"]
)
def test_fast_prob_with_a_masked_mode(sample, values, probability):
    got, s = scored(sample, torch.tensor([values]), (1, 2), fast_prob=0.3)
    assert np.exp(got).tolist() == pytest.approx([0.0, probability, 1 - probability], abs=1e-6)
    assert s.kept.eq(2 if probability < 1 else 1).all()


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("gap", [-6e4, -800.0, 800.0, 6e4])
def test_fast_prob_is_exact_however_far_apart_the_modes_lie(sample, gap, temperature):
    logits = torch.tensor([[0.0, gap, 1.0, 1.0]])
    got, _ = scored(sample, logits, (1, 2, 3), fast_prob=0.3, temperature=temperature)
    assert np.exp(got).tolist() == pytest.approx([0.0, 0.3, 0.35, 0.35], rel=3e-6)


def test_modes_of_several_tokens_are_decided_where_they_differ(sample):
    modes = ak.Modes(fast=(10, 11, 12, 11), slow=(10, 13))
    s = sample(logits_of(200), modes=modes, at_mode=True, seeds=1)
    assert set(s.tokens.tolist()) == {11, 13}
    assert torch.equal(s.modes, (s.tokens == 13).to(torch.int8))
    wanted = logits_of(200).double()[:, [11, 13]].softmax(1)
    torch.testing.assert_close(s.mode_probs.double(), wanted, rtol=2e-6, atol=1e-7)


def test_scoring_the_drawn_tokens_returns_their_logprobs(sample):
    logits, at_mode = logits_of(64), torch.arange(64) % 2 == 0
    settings = {"modes": (5, 6), "at_mode": at_mode, "mode_bias": 0.7, "temperature": 1.3, "top_p": 0.9}
    drawn = sample(logits, seeds=4, **settings)
    assert same(sample(logits, seeds=99, forced_tokens=drawn.tokens, **settings), drawn)
    foreign = sample(logits, seeds=4, forced_tokens=7, **settings)
    assert foreign.modes.eq(-1).all() and foreign.logprobs[at_mode].eq(-math.inf).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_greedy_takes_the_best_mode_and_ties_go_to_the_lowest_id(sample, temperature):
    logits = torch.zeros(3, VOCAB)
    logits[0, 9], logits[1, 4], logits[2, 5] = 9.0, 1.0, -1.0
    s = sample(logits, modes=(6, 5), at_mode=True, temperature=0.0, mode_bias=torch.tensor([0.0, 0.0, -2.0]), seeds=1)
    assert s.tokens.tolist() == [5, 5, 5]
    assert s.modes.tolist() == [1, 1, 1]
    assert s.kept.eq(1).all() and s.logprobs.eq(0).all()


def test_modes_may_be_in_the_last_group_of_a_large_vocabulary(sample):
    logits = row("normal", 32001)[None].expand(80, 32001)
    s = sample(logits, modes=(32000, 31999), at_mode=True, fast_prob=0.5, seeds=1)
    counts = torch.bincount(s.tokens - 31999, minlength=2)
    assert len(counts) == 2 and counts.min() > 15  # 40 expected, five standard errors are 22
