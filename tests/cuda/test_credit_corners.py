"""CUDA kernels of the credit ops on the host: how a row is spread over blocks, and the corners of the arguments."""

import math
import mmap

import pytest
import torch
from credit_on_host import problem, tolerance

import adapt_kernels as ak

INF, NAN = math.inf, math.nan
F64 = torch.float64
KB = 1 << 10
# Shared memory of a block and of a multiprocessor, clusters or not; then blocks per row and whether the row is staged.
DEVICES = {
    "two-reads": ((4 * KB, 4 * KB, 1), 1, False),
    "no-clusters": ((20 * KB, 40 * KB, 0), 1, False),
    "eight-blocks": ((5 * KB, 6 * KB, 1), 8, True),
    "four-blocks": ((9 * KB, 38 * KB, 1), 4, True),
    "two-blocks": ((17 * KB, 70 * KB, 1), 2, True),
    "one-block": ((60 * KB, 240 * KB, 1), 1, True),
}


def expected(logits, ids, old, advantages, mask=None, **more):
    """What the float64 reference makes of it: a tuple as Credit.policy_loss's."""
    leaf = logits.clone().requires_grad_()
    out = ak.policy_loss(leaf, ids, old, advantages, mask, backend="reference", **more)
    out.loss.backward()
    return *out, leaf.grad


def check(found, wanted, dtype):
    assert found[0].item() == pytest.approx(wanted[0].item(), rel=4e-6, abs=4e-6, nan_ok=True)
    for got, value in zip(found[1:4], wanted[1:4], strict=True):
        torch.testing.assert_close(got, value, rtol=2e-5, atol=4e-6, equal_nan=True)
    assert torch.equal(found[4], wanted[4])
    assert (found[5].double() - wanted[5].double()).abs().max() <= tolerance(wanted[5], dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_same_bits_however_a_row_is_spread(credit, device, dtype):
    vocab_size = 32 * KB // dtype.itemsize - 987  # tiles of 32 KB
    wide = torch.full((4, vocab_size + 9), 9.0, dtype=dtype)
    logits, ids, old, advantages = problem(4, vocab_size, dtype, seed=4)
    mask = torch.tensor([1, 1, 0, 1], dtype=torch.bool)
    logits[2], ids[2], old[2], advantages[2] = NAN, -100, NAN, NAN
    logits[3, :3000] = -INF
    outs = []
    for limits, blocks, staged in DEVICES.values():
        device(*limits)
        for x in (logits, wide[:, 3 : 3 + vocab_size]):
            target = x.copy_(logits) if x is not logits else None
            outs.append(credit.policy_loss(x, ids, old, advantages, mask, entropy_coef=0.1, gradient=target))
            cluster, num_bytes = credit.last_launch()
            assert (cluster, num_bytes > KB) == (blocks, staged)
        assert (wide[:, :3] == 9).all() and (wide[:, 3 + vocab_size :] == 9).all()
        outs[-1] = (*outs[-1][:-1], outs[-1][-1].clone())
    for other in outs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outs[0], other, strict=True))
    check(outs[0], expected(logits, ids, old, advantages, mask, entropy_coef=0.1), dtype)
    assert torch.equal(credit.token_logprobs(logits, ids, mask)[0], outs[0][1]), "one routine for both ops"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_real_vocabulary_on_an_h100_and_an_a100(credit, device, dtype):
    logits, ids, old, advantages = problem(1, 151936, dtype, seed=5)
    outs = [credit.policy_loss(logits, ids, old, advantages)]
    assert credit.last_launch()[0] == 8 and credit.last_launch()[1] * 2 <= 228 * KB
    device(163 * KB, 164 * KB, 0)
    outs.append(credit.policy_loss(logits, ids, old, advantages))
    assert credit.last_launch() == (1, 48 + 2 * 12 * 149), "too long for one block: a second read"
    assert all(torch.equal(a, b) for a, b in zip(*outs, strict=True))
    check(outs[0], expected(logits, ids, old, advantages), dtype)


def test_a_row_in_one_block_needs_no_cluster(credit, device):
    device(163 * KB, 164 * KB, 0)
    logits, ids, old, advantages = problem(1, 32000, torch.bfloat16, seed=6)
    check(credit.policy_loss(logits, ids, old, advantages), expected(logits, ids, old, advantages), torch.bfloat16)
    assert credit.last_launch() == (1, 32 * 2048 + 48 + 2 * 12 * 32)


def test_a_cluster_the_device_refuses_is_done_without(credit, device):
    logits, ids, old, advantages = problem(2, 8 * KB, torch.float32, seed=12)
    device(5 * KB, 22 * KB, 1)
    staged = credit.policy_loss(logits, ids, old, advantages)
    assert credit.last_launch()[0] == 8
    device(5 * KB, 22 * KB, 1, 4)
    found = credit.policy_loss(logits, ids, old, advantages)
    assert credit.last_launch() == (1, 48 + 2 * 12 * 8)
    assert all(torch.equal(a, b) for a, b in zip(staged, found, strict=True))


def test_offsets_beyond_32_bits(credit):
    """Two rows 2^31 elements apart, logits and gradient, in 4 GB that are never touched between them."""
    pages = mmap.mmap(-1, (2**31 + 4096) * 2, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    view = torch.frombuffer(pages, dtype=torch.bfloat16).as_strided((2, 1500), (2**31, 1))
    logits, ids, old, advantages = problem(2, 1500, torch.bfloat16, seed=7)
    view[:] = logits
    plain = credit.policy_loss(logits, ids, old, advantages)
    assert torch.equal(credit.token_logprobs(view, ids)[0], plain[1])
    far = credit.policy_loss(view, ids, old, advantages, gradient=view)
    assert all(torch.equal(a, b) for a, b in zip(plain, far, strict=True))


def test_rows_that_begin_with_tiles_of_minus_infinity(credit):
    for dtype in (torch.float32, torch.bfloat16):
        logits, ids, old, advantages = problem(3, 10000, dtype, seed=8)
        logits[:2, :9216] = -INF  # nine tiles: a group and one more
        logits[2, 100:9999] = -INF
        ids[:] = torch.tensor([9500, 9999, 3])
        old = ak.token_logprobs(logits, ids, backend="reference")[0].double()
        check(credit.policy_loss(logits, ids, old, advantages), expected(logits, ids, old, advantages), dtype)


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e30, 1e300])
def test_extreme_temperatures(credit, temperature):
    logits = torch.tensor([[0.0, 1.0, -INF, 2.0]]).repeat(1, 31)
    ids, temperatures = torch.tensor([3]), torch.tensor([temperature], dtype=torch.float64)
    wanted = ak.token_logprobs(logits, ids, None, temperatures, entropy=True, backend="reference")
    found = credit.token_logprobs(logits, ids, temperature=temperatures)
    torch.testing.assert_close(found[:2], tuple(wanted))


def test_infinite_advantages_stay_in_their_rows(credit):
    logits, ids, _, _ = problem(5, 2000, torch.float32, seed=9)
    old = credit.token_logprobs(logits, ids)[0].double()
    advantages = torch.tensor([0.0, INF, 1.0, -INF, NAN]).double()
    for kind in (1, 2, 3):
        kinds = torch.full((5,), kind, dtype=torch.int8)
        loss, *_, gradient = credit.policy_loss(logits, ids, old, advantages, kinds=kinds)
        assert not loss.isfinite() and not gradient[0].any()
        assert gradient[2].isfinite().all() and gradient[2].any()
        assert not gradient[[1, 3, 4]].isfinite().all(1).any()


def test_a_ratio_on_the_edge_of_a_clip_lets_the_gradient_through(credit):
    """At clips of zero width every ratio of exactly 1 is on both edges; a log-ratio of 100 is beyond the clamp."""
    logits, ids, _, _ = problem(6, 3000, torch.float32, seed=10)
    old, advantages = credit.token_logprobs(logits, ids)[0].double(), torch.linspace(-2, 2, 6).double()
    settings = {"clip_low": 0.0, "clip_high": 0.0}
    found = credit.policy_loss(logits, ids, old, advantages, **settings)
    assert (found[3] == 1).all() and not found[4].any() and (found[5].abs().amax(1) > 0).all()
    for gap, sign in ((1e-7, -1), (-1e-7, 1)):  # the ratio just below 1, and just above
        assert torch.equal(credit.policy_loss(logits, ids, old + gap, advantages, **settings)[4], advantages * sign > 0)
    for gap, ratio in ((100.0, math.exp(20)), (-100.0, math.exp(-20))):
        found = credit.policy_loss(logits, ids, old - gap, advantages)
        assert found[3].tolist() == pytest.approx([ratio] * 6) and not found[5].any()
        check(found, expected(logits, ids, old - gap, advantages), torch.float32)


def test_masked_rows_are_never_read_and_two_runs_are_equal(credit):
    logits, ids, old, advantages = problem(6, 9000, torch.bfloat16, seed=11)
    mask = torch.tensor([1, 0, 1, 0, 0, 1], dtype=torch.bool)
    spoiled, wrong, worse = logits.clone(), ids.clone(), old.clone()
    spoiled[~mask], wrong[~mask], worse[~mask] = NAN, torch.tensor([-100, 9000, 2**40]), NAN
    outs = [credit.policy_loss(logits, ids, old, advantages, mask, entropy_coef=0.1)]
    outs += [credit.policy_loss(spoiled, wrong, worse, advantages, mask, entropy_coef=0.1) for _ in range(2)]
    scores = [credit.token_logprobs(x, tokens, mask) for x, tokens in ((logits, ids), (spoiled, wrong))]
    for group in (outs, scores):
        for other in group[1:]:
            assert all(torch.equal(a, b) for a, b in zip(group[0], other, strict=True))
    assert not outs[0][-1][~mask].any() and (outs[0][3][~mask] == 1).all()


@pytest.mark.parametrize("slope", [1.0, 1e30, 3e38])
def test_steep_entropies_of_rows_with_minus_infinity(credit, slope):
    """In a whole tile and in the cut one after it, aligned and not."""
    logits = torch.randn(2, 4301, generator=torch.Generator().manual_seed(12))
    logits[:, 100:200], logits[:, 200:300], logits[:, 4200:4250] = -150.0, -INF, -INF
    ids, gone = torch.tensor([3, 4]), logits == -INF
    _, _, statistics = credit.token_logprobs(logits, ids)
    found = credit.logit_gradient(logits, ids, statistics, torch.ones(2, dtype=F64), torch.full((2,), slope, dtype=F64))
    assert not found[gone].any() and not found.isnan().any()
    wanted = logits.clone().requires_grad_()
    logprobs, entropy = ak.token_logprobs(wanted, ids, entropy=True, backend="reference")
    (logprobs + slope * entropy).sum().backward()
    torch.testing.assert_close(found, wanted.grad, rtol=2e-4, atol=1e-6 * slope)
