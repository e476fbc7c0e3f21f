"""The kept set of mode_sample, token by token, against an independent float64 sort."""

import math

import mode_sample_oracle as oracle
import numpy as np
import pytest
import torch
from mode_sample_cases import DTYPES, P_AT_THE_END, ROWS, SMALL_VOCABS, row, settings

BIG_SETTINGS = [
    (1.0, 50, 1.0, 0.0),
    (1.0, 0, 0.95, 0.0),
    (1.0, 0, 0.5, 0.0),
    (1.0, 0, 1.0, 0.02),
    (0.7, 20, 0.95, 0.0),
    (1.3, 1000, 0.9, 1e-6),
    (1.0, 2**30, 1 - 1e-7, 0.0),
    (1e4, 0, 0.9, 0.0),
    (0.0, 0, 1.0, 0.0),
]


def oracle_kept(y, setting, shift=0.0):
    """The kept mask with p moved by a relative `shift`."""
    temperature, top_k, top_p, min_p = setting
    if temperature == 0:
        return (np.arange(len(y)) == y.argmax()) & (y > -np.inf)
    return oracle.kept(y, top_k, top_p if top_p == 1 else top_p * (1 + shift), min_p * (1 - shift))


def call(sample, logits, chosen, **kwargs):
    columns = [torch.tensor(column, dtype=torch.float64) for column in zip(*chosen, strict=True)]
    temperature, top_k, top_p, min_p = columns
    return sample(logits, temperature=temperature, top_k=top_k.long(), top_p=top_p, min_p=min_p, seeds=1, **kwargs)


def check_rows(sample, backend, logits, chosen):
    """Counts equal the oracle's, the weakest kept token is in, the strongest dropped one is out. -> rows near a cut."""
    band = oracle.BAND.get(backend, oracle.WIDEST_BAND)
    ys = [oracle.tempered(oracle.as_row(z), setting[0]) for z, setting in zip(logits, chosen, strict=True)]
    masks = [oracle_kept(y, setting) for y, setting in zip(ys, chosen, strict=True)]
    near = np.array([s[0] > 0 and oracle.near_cut(y, *s[1:], band) for y, s in zip(ys, chosen, strict=True)])
    weakest = [int(np.where(mask, y, np.inf).argmin()) for y, mask in zip(ys, masks, strict=True)]
    dropped = [int(np.where(mask, -np.inf, np.maximum(y, -1e300)).argmax()) for y, mask in zip(ys, masks, strict=True)]
    s = call(sample, logits, chosen, forced_tokens=torch.tensor(weakest))
    for i, count in enumerate(s.kept.tolist()):
        low, high = (oracle_kept(ys[i], chosen[i], side * band).sum() for side in ((-1, 1) if near[i] else (0, 0)))
        assert low <= count <= high, f"row {i}, {chosen[i]}: kept {count}, the sort keeps {low} to {high}"
    firm = torch.from_numpy(~near)
    # A kept token may still have a log-prob below float32's range: T = 1e-38.
    in_range = torch.tensor([y[i] > -1e38 for y, i in zip(ys, weakest, strict=True)])
    assert (s.logprobs[firm & in_range] > -torch.inf).all()
    some_dropped = torch.tensor([not mask.all() for mask in masks])
    out = call(sample, logits, chosen, forced_tokens=torch.tensor(dropped)).logprobs
    assert (out[firm & some_dropped] == -torch.inf).all()
    accidental = [n for n, setting in zip(near, chosen, strict=True) if setting[2] != P_AT_THE_END]
    return int(np.sum(accidental)), len(accidental)


def check_vocab(sample, backend, vocab_size, dtype, chosen, names=tuple(ROWS)):
    logits = torch.stack([row(name, vocab_size, dtype, seed=3) for name in names for _ in chosen])
    near, total = check_rows(sample, backend, logits, chosen * len(names))
    # p = .5 and p = 1 meet the rows "half" and "equal" on purpose: 3 % of the table, nothing else.
    assert near <= 0.03 * total, f"{near} of {total} rows lie on a cut"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab_size", SMALL_VOCABS)
def test_kept_set_equals_a_sort(sample, backend, vocab_size, dtype):
    if dtype == torch.float64 and backend != "reference":
        pytest.skip("only the reference backend takes float64 logits")
    check_vocab(sample, backend, vocab_size, dtype, settings(vocab_size, count=24))


@pytest.mark.full
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("vocab_size", SMALL_VOCABS)
@pytest.mark.parametrize("name", ROWS)
def test_kept_set_equals_a_sort_for_every_setting(sample, backend, name, vocab_size, dtype):
    check_vocab(sample, backend, vocab_size, dtype, settings(vocab_size), [name])


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_kept_set_of_32001_tokens(sample, backend, dtype):
    check_vocab(sample, backend, 32001, dtype, BIG_SETTINGS, ["wide", "zipf", "coarse"])


@pytest.mark.parametrize("name", ["normal", "zipf"])
def test_kept_set_of_151936_tokens(sample, backend, name):
    check_vocab(sample, backend, 151936, torch.bfloat16, BIG_SETTINGS[:5], [name])


@pytest.mark.full
@pytest.mark.parametrize("vocab_size", [1023, 32000, 50257, 128256, 151936, 262144])
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_kept_set_of_real_vocabularies(sample, backend, vocab_size, dtype):
    for name in ("normal", "wide", "zipf", "bimodal", "late"):
        check_vocab(sample, backend, vocab_size, dtype, BIG_SETTINGS, [name])


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_a_cut_closer_than_float32_weights_is_decided_right(sample, backend, temperature):
    # p lies a billionth beside a cut: on the wrong side of it for weights that are 1e-7 off.
    logits = row("normal", 8192, seed=4)
    y = oracle.tempered(oracle.as_row(logits), temperature)
    masses = np.cumsum(np.sort(np.exp(y))[::-1])
    cuts = masses[50:5000:80] / masses[-1]
    chosen = [(temperature, 0, float(cut * (1 + side)), 0.0) for cut in cuts for side in (-1e-9, 1e-9)]
    check_rows(sample, backend, logits.expand(len(chosen), -1), chosen)


@pytest.mark.parametrize("name", ROWS)
def test_every_token_is_in_or_out_as_the_sort_says(sample, name):
    logits = row(name, 129, torch.bfloat16, seed=8)
    chosen = [(1.0, 5, 1.0, 0.0), (1.0, 0, 0.8, 0.0), (1.0, 0, 1.0, 0.1), (0.7, 40, 0.9, 0.02), (2.0, 128, 0.97, 0.3)]
    many = logits.expand(129 * len(chosen), 129)
    s = call(sample, many, [c for c in chosen for _ in range(129)], forced_tokens=torch.arange(129).repeat(len(chosen)))
    for setting, scored in zip(chosen, s.logprobs.view(len(chosen), 129), strict=True):
        y = oracle.tempered(oracle.as_row(logits), setting[0])
        assert not oracle.near_cut(y, *setting[1:])
        assert np.array_equal((scored > -torch.inf).numpy(), oracle_kept(y, setting)), setting


@pytest.mark.parametrize("setting", [(1.0, 3, 1.0, 0.0), (0.8, 0, 0.6, 0.0), (1.0, 0, 1.0, 0.3), (1.5, 6, 0.9, 0.2)])
@pytest.mark.parametrize("name", ["coarse", "zipf", "around-12"])
def test_draws_never_leave_the_kept_set_and_fill_it(sample, name, setting):
    logits = row(name, 129, torch.bfloat16, seed=5)
    y = oracle.tempered(oracle.as_row(logits), setting[0])
    mask = oracle_kept(y, setting)
    temperature, top_k, top_p, min_p = setting
    s = sample(
        logits.expand(4000, 129),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seeds=range_seeds(4000),
    )
    assert set(s.tokens.tolist()) <= set(np.flatnonzero(mask).tolist())
    share = np.exp(oracle.log_softmax(np.where(mask, y, -np.inf)))
    # A token of share 0.5 % is missed by 4000 draws with probability 2e-9.
    assert set(np.flatnonzero(share > 0.005).tolist()) <= set(s.tokens.tolist())


def range_seeds(count):
    return torch.arange(count) * 3 + 11


def test_bf16_ties_at_rank_k_and_at_p_stay_together(sample):
    logits = row("around-12", 1000, torch.bfloat16, seed=0)
    y = oracle.tempered(oracle.as_row(logits))
    s = sample(logits.expand(3, 1000), top_k=torch.tensor([50, 0, 1]), top_p=torch.tensor([1.0, 0.5, 1.0]), seeds=1)
    wanted = [int(oracle.kept(y, 50).sum()), int(oracle.kept(y, 0, 0.5).sum()), int((y == 0).sum())]
    assert s.kept.tolist() == wanted
    assert wanted[0] > 50, "this row is meant to have a tie at rank 50"


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_a_tie_at_the_top_survives_every_k_and_p(sample, top_k):
    logits = torch.tensor([[1.0, 4.0, 4.0, 4.0, 0.0]])
    assert sample(logits, top_k=top_k, seeds=1).kept.item() == 3
    assert sample(logits, top_k=top_k, top_p=0.0, min_p=1.0, seeds=1).kept.item() == 3


def test_a_mass_of_exactly_p_ends_the_nucleus(sample64):
    logits = row("half", 3, torch.float64)[None]
    assert sample64(logits, top_p=0.5, seeds=1).kept.item() == 1
    assert sample64(logits, top_p=np.nextafter(0.5, 1), seeds=1).kept.item() == 3


def test_a_mass_of_exactly_p_ends_a_short_list_and_a_weight_of_exactly_min_p_is_kept(sample, backend):
    if backend == "triton":
        pytest.skip("a GPU's exp may differ in the last bit")
    weight, logits = math.exp(-1), torch.tensor([[0.0, -1.0, -9.0]])
    p = 1 / (1 + weight)
    assert p * (1 + weight) == 1
    kept = [sample(logits, top_k=2, top_p=float(x), seeds=1).kept.item() for x in (p, np.nextafter(p, 1))]
    assert kept == [1, 2]
    kept = [sample(logits, min_p=float(x), seeds=1).kept.item() for x in (weight, np.nextafter(weight, 1))]
    assert kept == [2, 1]


def test_top_p_counts_the_mass_that_top_k_left(sample):
    # Shares .4 .3 .2 .1: top_p alone needs three tokens for .7+; of the two that k leaves, the first holds 4/7.
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    assert sample(logits, top_p=0.57, seeds=1).kept.item() == 2
    assert sample(logits, top_p=0.57, top_k=2, seeds=1).kept.item() == 1


def test_settings_per_row_equal_settings_per_call(sample):
    names = ["normal", "zipf", "coarse", "late"]
    chosen = settings(129, count=4)
    logits = torch.stack([row(names[i % 4], 129, seed=i) for i in range(len(chosen))])
    together = call(sample, logits, chosen)
    for i, setting in enumerate(chosen):
        alone = sample(
            logits[i : i + 1],
            **dict(zip(("temperature", "top_k", "top_p", "min_p"), setting, strict=True)),
            seeds=torch.tensor([0]),
        )
        assert alone.kept[0] == together.kept[i], setting


@pytest.mark.parametrize("min_p", [1e-6, 1e-300])
def test_a_min_p_threshold_next_to_zero(sample, min_p):
    # A billion floats lie within rounding of 0: a search that steps through them would not end.
    logits = torch.tensor([[-np.log(min_p), 0.0, 1e-30, -1e-30, -1.0]], dtype=torch.float32)
    y = (logits.double() - logits.double().max()).numpy()[0]
    assert sample(logits, min_p=min_p, seeds=1).kept.item() == (np.exp(y) >= min_p).sum()
