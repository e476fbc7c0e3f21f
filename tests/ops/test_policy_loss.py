"""policy_loss on every backend against NumPy float64: loss kinds, clip edges, masks, ADaPT's numbers."""

import math

import numpy as np
import pytest
import torch
from credit_oracle import row_distribution, row_gradient, row_loss, spacing
from policy_loss_rows import DTYPES, rows_of

import adapt_kernels as ak

INF, NAN = math.inf, math.nan


@pytest.fixture
def backend(credit_backend):
    return credit_backend


def check(logits, ids, old, advantages, backend, temperature=1.0, mask=None, kinds=None, **settings):
    leaf = logits.detach().clone().requires_grad_()
    out = ak.policy_loss(leaf, ids, old, advantages, mask, kinds, temperature=temperature, backend=backend, **settings)
    out.loss.backward()
    total = 0.0
    for i in range(len(ids)):
        if mask is not None and not mask[i]:
            assert (out.logprobs[i], out.entropy[i], out.ratio[i], out.clipped[i]) == (0, 0, 1, False)
            assert not leaf.grad[i].any()
            continue
        row = logits[i].double().numpy()
        log_p, p, entropy = row_distribution(row, temperature)
        # The row's own float32 log-prob: its rounding is checked in token_logprobs' tests.
        logp = float(out.logprobs[i])
        assert abs(logp - log_p[ids[i]]) <= 3e-6 * max(1, abs(log_p[ids[i]]))

        def at(name, settings=settings, i=i):
            value = settings.get(name)
            return float(value[i]) if torch.is_tensor(value) else value

        loss, slope, bend, ratio, clipped = row_loss(
            logp,
            entropy,
            float(old[i]),
            float(advantages[i]),
            1 if kinds is None else int(kinds[i]),
            1.0 if at("weights") is None else at("weights"),
            at("ref_logprobs"),
            settings.get("kl_coef", 0.0),
            settings.get("entropy_coef", 0.0),
        )
        total += loss
        assert out.ratio[i].item() == pytest.approx(ratio, rel=1e-6)
        assert out.clipped[i].item() == clipped
        expected = row_gradient(row, int(ids[i]), temperature, slope, bend)
        got = leaf.grad[i].double().numpy()
        if slope == bend == 0:
            assert not got.any()
        ulp = spacing(np.abs(expected).max(), logits.dtype) if logits.dtype != torch.float32 else 0
        scale = (abs(slope) + abs(bend)) * p.max() / temperature
        assert np.abs(got - expected).max() <= ulp + 3e-6 * np.abs(expected).max() + 1e-6 * scale
        assert abs(got.sum()) <= 3 * np.abs(got).sum() * float(torch.finfo(logits.dtype).eps) + 1e-6
    assert out.loss.item() == pytest.approx(total, rel=1e-6, abs=1e-6)
    return out, leaf.grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab_size", [2, 31, 129, 1023])
def test_every_kind_at_every_ratio(backend, dtype, vocab_size):
    count = 4 * 11 * 3
    logits, ids, old = rows_of(count, vocab_size, vocab_size, dtype)
    kinds = torch.arange(count) // 11 % 4
    advantages = torch.tensor([1.5, -0.7, 0.0])[torch.arange(count) // 44]
    mask = torch.arange(count) % 7 != 3
    check(logits, ids, old, advantages, backend, mask=mask, kinds=kinds)
    weights = torch.linspace(0, 2, count)
    ref = old + torch.linspace(-30, 30, count)
    settings = {"weights": weights, "ref_logprobs": ref, "kl_coef": 1e-6, "entropy_coef": 0.01}
    check(logits, ids, old, advantages, backend, 0.6, mask, kinds, **settings)


def test_a_real_vocabulary(backend):
    logits, ids, old = rows_of(3, 151936, 1)
    check(logits, ids, old, torch.tensor([1.0, -1.0, 2.0]), backend, weights=torch.full((3,), 1 / 3))


def test_old_equal_to_new_is_a_ratio_of_exactly_one_and_edges_let_the_gradient_through(backend):
    logits, ids, _ = rows_of(40, 777, 2)
    old, _ = ak.token_logprobs(logits, ids, backend=backend)
    advantages = torch.linspace(-2, 2, 40)
    leaf = logits.clone().requires_grad_()
    # Both clips at exactly 1: every row stands on an edge of each.
    out = ak.policy_loss(leaf, ids, old, advantages, clip_low=0.0, clip_high=0.0, backend=backend)
    assert torch.equal(out.logprobs, old)
    assert (out.ratio == 1).all() and not out.clipped.any()
    out.loss.backward()
    assert (leaf.grad.abs().amax(1) > 0).all()
    nudged = torch.nextafter(old, torch.tensor(INF)), torch.nextafter(old, torch.tensor(-INF))
    for shifted, sign in zip(nudged, (-1, 1), strict=True):  # ratio just below 1, just above 1
        out = ak.policy_loss(logits, ids, shifted, advantages, clip_low=0.0, clip_high=0.0, backend=backend)
        assert torch.equal(out.clipped, (advantages * sign > 0)), sign


def test_the_dual_clip_bounds_only_negative_advantages(backend):
    logits, ids, _ = rows_of(4, 50, 3)
    new, _ = ak.token_logprobs(logits, ids, backend=backend)
    old, advantages = new - math.log(5), torch.tensor([1.0, -1.0, -2.0, 0.5])
    out = ak.policy_loss(logits, ids, old, advantages, backend=backend)
    assert out.loss.item() == pytest.approx(-1.28 + 3 + 6 - 0.64, rel=1e-6)
    assert out.clipped.all()
    unbounded = ak.policy_loss(logits, ids, old, advantages, dual_clip=None, backend=backend)
    assert unbounded.loss.item() == pytest.approx(-1.28 + 5 + 10 - 0.64, rel=1e-6)
    assert unbounded.clipped.tolist() == [True, False, False, True]


def test_adapts_golden_loss(backend):
    """A group of 4 samples: mode token by CISPO against log 0.5, the rest by PPO at ratio 1, mean over tokens."""
    advantages = ak.adapt_advantages(
        outcome=torch.tensor([1.8, 0.8, 1.8, 1.8]),
        mode_bonus=ak.efficiency_bonus(torch.tensor([1, 0, 1, 1]), torch.zeros(4).long(), torch.tensor([1, 1, 0, 0])),
        lengths=torch.tensor([4, 3, 2, 2]),
        groups=torch.zeros(4).long(),
        modes=torch.tensor([1, 1, 0, 0]),
        scheme="reference",
    ).expand(4)
    think, answer, other = 0, 1, 2
    logits = torch.full((4, 4, 3), -INF)
    logits[:, 0, think], logits[:, 0, answer] = math.log(0.7), math.log(0.3)
    logits[:, 1:, other] = 0.0
    ids = torch.full((4, 4), other)
    ids[:, 0] = torch.tensor([think, think, answer, answer])
    mask = torch.arange(4) < torch.tensor([4, 3, 2, 2])[:, None]
    old = torch.zeros(4, 4)
    old[:, 0] = math.log(0.5)
    kinds = torch.ones(4, 4).long()
    kinds[:, 0] = 2
    out = ak.policy_loss(logits, ids, old, advantages, mask, kinds, weights=1 / 11, backend=backend)
    assert out.loss.item() == pytest.approx(-0.0736044, abs=5e-8)


def test_advantages_of_zero_and_infinity_stay_in_their_rows(backend):
    logits, ids, old = rows_of(5, 200, 4)
    logits[0, ids[0]] = -INF
    advantages = torch.tensor([0.0, INF, 1.0, -INF, NAN])
    for kind in (1, 2, 3):
        leaf = logits.clone().requires_grad_()
        out = ak.policy_loss(leaf, ids, old, advantages, kinds=torch.full((5,), kind), backend=backend)
        assert not out.loss.isfinite()
        out.loss.backward()
        assert not leaf.grad[0].any() and leaf.grad[2].isfinite().all() and leaf.grad[2].any()
        assert not leaf.grad[[1, 3, 4]].isfinite().all(1).any()


def test_a_token_at_minus_infinity(backend):
    logits, ids, old = rows_of(3, 200, 5)
    logits[1, ids[1]] = -INF
    leaf = logits.clone().requires_grad_()
    out = ak.policy_loss(leaf, ids, old, torch.tensor([1.0, 1.0, 1.0]), backend=backend)
    assert out.logprobs[1] == -INF and out.ratio[1].item() == pytest.approx(math.exp(-20))
    out.loss.backward()
    assert out.loss.isfinite() and leaf.grad.isfinite().all() and not leaf.grad[1].any()
    leaf = logits.clone().requires_grad_()
    out = ak.policy_loss(leaf, ids, old, 1.0, kinds=3, backend=backend)
    assert out.loss == INF
    out.loss.backward()
    assert leaf.grad.isfinite().all() and leaf.grad[1, ids[1]] == -1


def test_masked_rows_are_never_read(backend):
    logits, ids, old = rows_of(8, 333, 6)
    mask = torch.tensor([1, 0, 1, 0, 0, 1, 1, 1]).bool()
    spoiled, wrong, worse = logits.clone(), ids.clone(), old.clone()
    spoiled[~mask], wrong[~mask], worse[~mask] = NAN, torch.tensor([-100, 333, 2**40]), NAN
    results = []
    for x, tokens, before in ((logits, ids, old), (spoiled, wrong, worse)):
        leaf = x.clone().requires_grad_()
        out = ak.policy_loss(leaf, tokens, before, 1.0, mask, entropy_coef=0.1, backend=backend)
        out.loss.backward()
        results.append((*out, leaf.grad))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    leaf = spoiled.clone().requires_grad_()
    out = ak.policy_loss(leaf, wrong, worse, 1.0, torch.zeros(8).bool(), backend=backend)
    out.loss.backward()
    assert out.loss == 0 and not leaf.grad.any()


@pytest.mark.parametrize("shape", [(0, 5), (0, 3, 5), (3, 0, 5)])
def test_empty_batches(backend, shape):
    logits = torch.zeros(shape, requires_grad=True)
    out = ak.policy_loss(logits, torch.zeros(shape[:-1]).long(), 0.0, 1.0, backend=backend)
    out.loss.backward()
    assert out.loss == 0 and out.ratio.shape == shape[:-1] and logits.grad.shape == shape


@pytest.mark.parametrize("scale", [1.0, 1024.0, 1 / 3])
def test_what_multiplies_the_loss_reaches_the_gradient(backend, scale):
    logits, ids, old = rows_of(11, 300, 7)
    grads = []
    for factor, grad_scale in ((1.0, 1.0), (2.5, 1.0), (2.5, scale), (scale, scale)):
        leaf = logits.clone().requires_grad_()
        loss = ak.policy_loss(leaf, ids, old, 1.0, grad_scale=grad_scale, backend=backend).loss
        (factor * loss).backward()
        grads.append(leaf.grad / factor)
    for grad in grads[1:]:
        torch.testing.assert_close(grad, grads[0], rtol=1e-6, atol=1e-9)


def test_row_arguments_strides_and_shapes(backend):
    generator = torch.Generator().manual_seed(8)
    wide = torch.randn(4, 3, 77, generator=generator)
    view = wide.transpose(0, 1)[:, :, 5:75]
    ids = torch.randint(0, 70, (3, 4), generator=generator)
    old, per_sequence = torch.full((3, 4), -4.0), torch.tensor([1.0, -1.0, 0.5])
    expected = ak.policy_loss(view.contiguous(), ids, old, per_sequence[:, None].expand(3, 4), backend=backend)
    for advantages in (per_sequence, per_sequence.double(), per_sequence.tolist()):
        out = ak.policy_loss(view, ids, -4.0, advantages, backend=backend)
        assert torch.equal(out.loss, expected.loss) and torch.equal(out.ratio, expected.ratio)
    assert expected.clipped.shape == expected.entropy.shape == (3, 4) and expected.clipped.dtype == torch.bool
