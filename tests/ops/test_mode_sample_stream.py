"""The random stream inside mode_sample: published tokens, seeds and steps, independence of the batch, the far tail."""

import mode_sample_oracle as oracle
import numpy as np
import pytest
import torch
from mode_sample_cases import row
from mode_sample_rare_seeds import NEAR_WINS, near_wins

import adapt_kernels as ak
from adapt_kernels import philox, philox_reference
from adapt_kernels.philox_reference import GROUP_SIZE, PURPOSE_GROUP, PURPOSE_TOKEN

SETTINGS = {"modes": (5, 128), "temperature": 0.9, "top_k": 60, "top_p": 0.95, "min_p": 0.001}
# Tokens agree across backends except where two noised values lie within this.
CLOSE = 1e-5


def logits_of(count, vocab_size=300, dtype=torch.float32, seed=0):
    return (torch.randn(count, vocab_size, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def rows_of(s, index):
    return [x[index] for x in s]


def runner_up_gap(y, seed, step):
    """How far the chosen group and the chosen token are ahead of the next ones, noise included."""
    groups = -(-len(y) // GROUP_SIZE)
    grouped = np.pad(y, (0, groups * GROUP_SIZE - len(y)), constant_values=-np.inf).reshape(groups, GROUP_SIZE)
    with np.errstate(divide="ignore"):
        level = np.log(np.exp(grouped).sum(1)) + philox_reference.gumbel(seed, step, PURPOSE_GROUP, np.arange(groups))
    ids = level.argmax() * GROUP_SIZE + np.arange(GROUP_SIZE)
    inside = grouped[level.argmax()] + philox_reference.gumbel(seed, step, PURPOSE_TOKEN, ids)
    return min(np.diff(np.sort(x)[-2:])[0] if len(x) > 1 else np.inf for x in (level, inside))


@pytest.mark.parametrize("vocab_size", [1, 2, 127, 128, 129, 1000])
def test_tokens_are_those_of_the_published_stream(sample, vocab_size):
    count = 300
    logits = logits_of(count, vocab_size)
    seeds = torch.randint(-(2**63), 2**63 - 1, (count,), generator=torch.Generator().manual_seed(1))
    step = torch.arange(count) * 7
    s = sample(logits, temperature=1.7, top_k=50, top_p=0.97, seeds=seeds, step=step)
    close = 0
    for i in range(count):
        y = oracle.tempered(oracle.as_row(logits[i]), 1.7)
        mask = oracle.kept(y, 50, 0.97)
        token = philox_reference.draw(y, mask, int(seeds[i]), int(step[i]))
        if s.tokens[i] != token:
            assert runner_up_gap(np.where(mask, y, -np.inf), int(seeds[i]), int(step[i])) < CLOSE
            close += 1
    assert close <= 1  # 300 draws meet a gap of 1e-5 with probability 3e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_draws_the_same_alone_and_in_any_slot(sample, dtype):
    logits, seeds = logits_of(64, dtype=dtype), torch.arange(64) * 12345 - 99
    at_mode = torch.arange(64) % 5 == 0
    together = sample(logits, at_mode=at_mode, seeds=seeds, **SETTINGS)
    for i in (0, 1, 5, 33, 63):
        alone = sample(logits[i : i + 1], at_mode=at_mode[i : i + 1], seeds=seeds[i : i + 1], **SETTINGS)
        assert same(alone, rows_of(together, slice(i, i + 1)))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    permuted = sample(logits[order], at_mode=at_mode[order], seeds=seeds[order], **SETTINGS)
    assert same(permuted, rows_of(together, order))


@pytest.mark.parametrize("slot", range(0, 64, 7))
def test_one_row_in_every_slot(sample, slot):
    logits, seeds = logits_of(64, seed=slot + 1), torch.arange(64)
    logits[slot], seeds[slot] = logits_of(1)[0], 77
    alone = sample(logits_of(1), seeds=torch.tensor([77]), **SETTINGS)
    assert same(rows_of(sample(logits, seeds=seeds, **SETTINGS), slice(slot, slot + 1)), alone)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_large_row_has_the_same_bits_alone_and_in_a_batch(sample, backend, dtype, threads):
    if dtype == torch.float64 and backend != "reference":
        pytest.skip("only the reference backend takes float64 logits")
    logits, seeds = logits_of(3, 151936, dtype, seed=4), torch.arange(3)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = sample(logits, modes=(5, 128), seeds=seeds)
        alone = [sample(logits[i : i + 1], modes=(5, 128), seeds=seeds[i : i + 1]) for i in range(3)]
    finally:
        torch.set_num_threads(before)
    for i in range(3):
        assert same(alone[i], rows_of(together, slice(i, i + 1))), f"row {i}"


def test_other_rows_settings_do_not_matter(sample):
    logits, seeds = logits_of(32), torch.arange(32)
    plain = sample(logits, seeds=seeds)
    temperature, top_k = torch.ones(32), torch.zeros(32, dtype=torch.int64)
    temperature[::2], top_k[::2] = 0.1, 3
    mixed = sample(logits, seeds=seeds, temperature=temperature, top_k=top_k)
    assert same(rows_of(mixed, slice(1, None, 2)), rows_of(plain, slice(1, None, 2)))


def test_a_batch_larger_than_the_working_set(sample):
    logits, seeds = logits_of(530, 32001), torch.arange(530)
    s = sample(logits, seeds=seeds)
    for i in (0, 523, 524, 525, 529):
        assert same(sample(logits[i : i + 1], seeds=seeds[i : i + 1]), rows_of(s, slice(i, i + 1)))


@pytest.mark.parametrize("seed", [0, 7, -7, 2**63 - 1, 2**63, 2**64 - 1])
def test_an_int_seed_means_row_seeds(sample, seed):
    logits = logits_of(50)
    signed = [(ak.row_seed(seed, i) + 2**63) % 2**64 - 2**63 for i in range(50)]
    assert same(sample(logits, seeds=seed), sample(logits, seeds=torch.tensor(signed)))
    assert same(sample(logits, seeds=seed), sample(logits, seeds=signed))
    if -(2**63) <= seed < 2**63:
        assert same(sample(logits, seeds=seed), sample(logits, seeds=torch.tensor(seed)))
        assert same(sample(logits, seeds=seed), sample(logits, seeds=np.int64(seed)))


def test_no_seed_follows_torchs_generator(sample):
    logits = logits_of(50)
    torch.manual_seed(4)
    first, second = sample(logits), sample(logits)
    torch.manual_seed(4)
    assert same(sample(logits), first)
    assert same(sample(logits), second)
    assert not torch.equal(first.tokens, second.tokens)
    torch.manual_seed(4)
    assert same(sample(logits, seeds=philox.fresh_seed()), first)


def test_a_given_seed_leaves_torchs_generator_alone(sample):
    torch.manual_seed(4)
    before = torch.get_rng_state()
    sample(logits_of(3), seeds=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_steps_seeds_and_rows_draw_differently(sample):
    logits = torch.zeros(64, 1000)
    base = sample(logits, seeds=1).tokens
    assert len(set(base.tolist())) > 50
    for other in (sample(logits, seeds=1, step=1), sample(logits, seeds=2), sample(logits, seeds=1, step=2**31)):
        # Two uniform draws from 1000 tokens meet once in 1000: five in 64 rows has probability 1e-8.
        assert int((other.tokens == base).sum()) < 5


def test_a_step_per_row(sample):
    logits, step = logits_of(20), torch.arange(20) % 4
    s = sample(logits, seeds=1, step=step)
    for value in range(4):
        alone = sample(logits, seeds=1, step=value)
        assert same(rows_of(s, step == value), rows_of(alone, step == value))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_filters_and_temperature_reuse_the_same_noise(sample, temperature):
    # A token that survives every filter and wins without them wins with them, if its group's mass is unchanged.
    logits = row("wide", 100)[None].expand(500, 100)
    free = sample(logits, temperature=temperature, seeds=torch.arange(500)).tokens
    cut = sample(logits, temperature=temperature, top_k=20, seeds=torch.arange(500))
    inside = torch.isin(free, logits[0].topk(20).indices)
    assert torch.equal(free[inside], cut.tokens[inside])


@pytest.mark.parametrize(("level", "gap"), NEAR_WINS, ids=str)
def test_a_token_far_below_the_maximum_wins_exactly_where_its_noise_says(sample, level, gap):
    seeds = np.array(near_wins(level, gap))
    purpose, rare = (PURPOSE_TOKEN, 1) if level == "token" else (PURPOSE_GROUP, 128)
    top, low = (philox_reference.gumbel(seeds, 0, purpose, item) for item in (0, 1))
    lead = low - gap - top
    assert np.abs(lead).max() < 0.1 and np.abs(lead).min() > 10 * CLOSE
    logits = torch.full((1, 129), -torch.inf)
    logits[0, 0], logits[0, rare] = 0.0, -gap
    s = sample(logits.expand(len(seeds), 129), seeds=torch.from_numpy(seeds))
    assert s.tokens.tolist() == np.where(lead > 0, rare, 0).tolist()
    assert (lead > 0).sum() == (lead < 0).sum() == 6
