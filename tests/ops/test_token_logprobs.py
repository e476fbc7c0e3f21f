"""token_logprobs on every backend against NumPy float64: values, gradients, masks, strides, broken rows."""

import math

import numpy as np
import pytest
import torch
from credit_oracle import row_distribution, row_gradient, spacing

import adapt_kernels as ak

INF, NAN = math.inf, math.nan
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def backend(credit_backend):
    return credit_backend


def logits_of(name, rows, vocab_size, generator):
    noise = torch.randn(rows, vocab_size, generator=generator)
    if name == "peaked":
        noise[:, vocab_size // 2] += 25
    return {"flat": 1.0, "wide": 6.0, "peaked": 2.0}[name] * noise


def check(logits, ids, mask, temperature, backend):
    """Values and gradient of every row against the oracle."""
    leaf = logits.detach().clone().requires_grad_()
    logprobs, entropy = ak.token_logprobs(leaf, ids, mask, temperature, entropy=True, backend=backend)
    assert logprobs.shape == entropy.shape == ids.shape
    assert logprobs.dtype == entropy.dtype == torch.float32
    (logprobs.nan_to_num() * 1.5 + entropy.nan_to_num() * 0.25).sum().backward()
    assert leaf.grad.dtype == logits.dtype
    temperatures = torch.as_tensor(temperature, dtype=torch.float64).expand(ids.shape)
    for i in range(len(ids)):
        row = logits[i].double().numpy()
        if mask is not None and not mask[i]:
            assert logprobs[i] == entropy[i] == 0 and not leaf.grad[i].any()
            continue
        log_p, p, h = row_distribution(row, float(temperatures[i]))
        lse = row[ids[i]] / float(temperatures[i]) - log_p[ids[i]]
        assert abs(logprobs[i].item() - log_p[ids[i]]) <= 2e-6 * max(1, abs(lse), abs(log_p[ids[i]]))
        assert abs(entropy[i].item() - h) <= 2e-6 * max(1, h)
        expected = row_gradient(row, int(ids[i]), float(temperatures[i]), 1.5, 0.25)
        got = leaf.grad[i].double().numpy()
        allowed = spacing(np.abs(expected).max(), logits.dtype) if logits.dtype != torch.float32 else 0
        # float32 rounds the exponent: e^a is off by 6e-8 |a| relative.
        allowed += 3e-6 * np.abs(expected).max() + 2e-7 * p.max() / float(temperatures[i])
        assert np.abs(got - expected).max() <= allowed
        units = 3 * np.abs(got).sum() * float(torch.finfo(logits.dtype).eps) + 1e-6
        assert abs(got.sum()) <= units, "a row's gradient sums to 0"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab_size", [1, 2, 7, 31, 127, 128, 129, 1023, 4099])
@pytest.mark.parametrize("kind", ["flat", "wide", "peaked"])
def test_values_and_gradients(backend, dtype, vocab_size, kind):
    generator = torch.Generator().manual_seed(vocab_size)
    logits = logits_of(kind, 5, vocab_size, generator).to(dtype)
    ids = torch.randint(0, vocab_size, (5,), generator=generator)
    check(logits, ids, torch.tensor([True, True, False, True, True]), 1.0, backend)
    check(logits, ids, None, torch.tensor([0.5, 1.0, 2.0, 0.1, 7.0]), backend)


@pytest.mark.parametrize("vocab_size", [32001, 151936])
def test_real_vocabularies(backend, vocab_size):
    generator = torch.Generator().manual_seed(1)
    logits = logits_of("wide", 2, vocab_size, generator)
    check(logits, torch.tensor([vocab_size - 1, 17]), None, 1.0, backend)


def test_large_numbers_with_a_common_offset(backend):
    generator = torch.Generator().manual_seed(2)
    check(3e4 + 8 * torch.randn(3, 300, generator=generator), torch.tensor([0, 5, 299]), None, 1.0, backend)
    check(1e4 * torch.randn(3, 300, generator=generator), torch.tensor([0, 5, 299]), None, 0.7, backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_minus_infinity_in_a_first_tile_and_at_the_token(backend, dtype):
    logits = torch.randn(3, 9000, generator=torch.Generator().manual_seed(3)).to(dtype)
    logits[:, :4096] = -INF
    logits[1, 5000] = -INF
    ids = torch.tensor([8000, 5000, 10])
    leaf = logits.clone().requires_grad_()
    logprobs, entropy = ak.token_logprobs(leaf, ids, entropy=True, backend=backend)
    assert logprobs[0].isfinite() and logprobs[1] == -INF and logprobs[2] == -INF
    assert entropy.isfinite().all()
    logprobs.nan_to_num(neginf=0).sum().backward()
    assert leaf.grad.isfinite().all() and not leaf.grad[0, :4096].any()
    check(logits[:1], ids[:1], None, 1.0, backend)


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e30, 1e300])
def test_extreme_temperatures(backend, temperature):
    logits = torch.tensor([[0.0, 1.0, -INF, 2.0]]).repeat(1, 31)  # fewer columns than are summed at a time
    leaf, share = logits.clone().requires_grad_(), torch.tensor([[0.0, 0, 0, 1] if temperature < 1 else [1.0, 1, 0, 1]])
    share = (share / share.sum() / 31).repeat(1, 31)
    logprobs, entropy = ak.token_logprobs(leaf, torch.tensor([3]), None, temperature, entropy=True, backend=backend)
    assert logprobs.item() == pytest.approx(share[0, 3].log().item(), rel=2e-6)
    assert entropy.item() == pytest.approx(-torch.xlogy(share, share).sum().item(), rel=2e-6)
    if 1e-38 < temperature < 1e38:  # else the gradient is beyond float32 as well
        logprobs.sum().backward()
        share[0, 3] -= 1
        torch.testing.assert_close(leaf.grad.double() * temperature, -share.double(), rtol=2e-6, atol=2e-6)


def test_the_gradient_far_below_the_maximum_is_exactly_zero(backend):
    logits = torch.randn(1, 500, generator=torch.Generator().manual_seed(12))
    logits[0, 100:200], logits[0, 200:300] = -150.0, -INF
    for slopes in ((1.0, 0.0), (1.0, 1e30)):
        leaf = logits.clone().requires_grad_()
        logprobs, entropy = ak.token_logprobs(leaf, torch.tensor([3]), entropy=True, backend=backend)
        (slopes[0] * logprobs + slopes[1] * entropy).sum().backward()
        assert not leaf.grad[0, 200:300].any() and leaf.grad[0, :100].all()
        assert leaf.grad[0, 100:200].abs().max() <= 1e-37 * max(slopes)


ROWS_WITHOUT_A_DISTRIBUTION = {
    "nothing": [-INF] * 200,
    "nan": [0.0] * 150 + [NAN] + [0.0] * 49,
    "nan-among-nothing": [-INF] * 150 + [NAN] + [-INF] * 49,
    "all-nan": [NAN] * 200,
    "infinity": [0.0, INF] + [0.0] * 198,
    "two-infinities": [INF, INF] + [-INF] * 198,
}


@pytest.mark.parametrize("name", ROWS_WITHOUT_A_DISTRIBUTION)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_without_a_distribution_is_nan_and_alone(backend, name, dtype):
    logits = torch.randn(3, 200, generator=torch.Generator().manual_seed(4)).to(dtype)
    logits[1] = torch.tensor(ROWS_WITHOUT_A_DISTRIBUTION[name])
    leaf = logits.clone().requires_grad_()
    logprobs, entropy = ak.token_logprobs(leaf, torch.tensor([3, 1, 4]), entropy=True, backend=backend)
    assert logprobs.isnan().tolist() == entropy.isnan().tolist() == [False, True, False]
    (logprobs + entropy).sum().backward()
    assert leaf.grad.isnan().all(1).tolist() == [False, True, False] and leaf.grad[[0, 2]].isfinite().all()


def test_masked_rows_are_never_read(backend):
    """NaN logits and impossible ids where the mask is false change nothing, in values, gradients or bits."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(6, 333, generator=generator)
    ids, mask = torch.randint(0, 333, (6,), generator=generator), torch.tensor([1, 0, 1, 0, 0, 1])
    spoiled, wrong = logits.clone(), ids.clone()
    spoiled[1], spoiled[3], spoiled[4] = NAN, INF, -INF
    wrong[1], wrong[3], wrong[4] = -100, 333, 2**40
    results = []
    for x, tokens in ((logits, ids), (spoiled, wrong)):
        leaf = x.clone().requires_grad_()
        logprobs, entropy = ak.token_logprobs(leaf, tokens, mask, entropy=True, backend=backend)
        (logprobs + entropy).sum().backward()
        results.append((logprobs, entropy, leaf.grad))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    nothing, _ = ak.token_logprobs(spoiled, wrong, torch.zeros(6, dtype=torch.bool), backend=backend)
    assert not nothing.any()


def test_strides_shapes_and_id_types(backend):
    generator = torch.Generator().manual_seed(6)
    wide = torch.randn(4, 3, 77, generator=generator)
    ids = torch.randint(0, 70, (3, 4), generator=generator)
    expected, _ = ak.token_logprobs(wide.transpose(0, 1)[:, :, 5:75].contiguous(), ids, backend=backend)
    view = wide.transpose(0, 1)[:, :, 5:75]
    packed = torch.empty(25, dtype=torch.int64)
    packed[1:13] = ids.reshape(-1)
    for tokens in (ids, ids.int(), ids.to(torch.uint8), packed[1:13].view(3, 4)):
        assert torch.equal(ak.token_logprobs(view, tokens, backend=backend)[0], expected)
    one = torch.randn(1, 50, generator=generator)
    repeated, _ = ak.token_logprobs(one.expand(4, 50), torch.tensor([1, 1, 2, 2]), backend=backend)
    single, _ = ak.token_logprobs(one.repeat(4, 1), torch.tensor([1, 1, 2, 2]), backend=backend)
    assert torch.equal(repeated, single)
    leaf = wide.clone().requires_grad_()
    ak.token_logprobs(leaf.transpose(0, 1)[:, :, 5:75], ids, backend=backend)[0].sum().backward()
    dense = view.detach().clone().requires_grad_()
    ak.token_logprobs(dense, ids, backend=backend)[0].sum().backward()
    assert torch.equal(leaf.grad.transpose(0, 1)[:, :, 5:75], dense.grad)
    assert not leaf.grad[:, :, :5].any() and not leaf.grad[:, :, 75:].any()


@pytest.mark.parametrize("shape", [(0, 5), (0, 3, 5), (3, 0, 5)])
def test_empty_batches(backend, shape):
    logits = torch.zeros(shape, requires_grad=True)
    logprobs, entropy = ak.token_logprobs(
        logits, torch.zeros(shape[:-1], dtype=torch.int64), entropy=True, backend=backend
    )
    assert logprobs.shape == entropy.shape == shape[:-1]
    logprobs.sum().backward()
    assert logits.grad.shape == shape


def test_the_same_bits_twice_and_in_any_batch(backend):
    generator = torch.Generator().manual_seed(7)
    logits = 4 * torch.randn(9, 5003, generator=generator)
    ids = torch.randint(0, 5003, (9,), generator=generator)
    first, second = (ak.token_logprobs(logits, ids, entropy=True, backend=backend) for _ in range(2))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    third = ak.token_logprobs(logits, ids, entropy=True, backend=backend)
    torch.set_num_threads(threads)
    for k in range(2):
        assert torch.equal(first[k], second[k]) and torch.equal(first[k], third[k])
        alone = [
            ak.token_logprobs(logits[i : i + 1], ids[i : i + 1], entropy=True, backend=backend)[k] for i in range(9)
        ]
        if backend != "reference":
            assert torch.equal(torch.cat(alone), first[k])


def test_offsets_beyond_32_bits(backend):
    """Two rows 2^31 elements apart in 2 GB of bfloat16 that are never touched between them."""
    if backend == "reference":
        pytest.skip("the reference copies the rows it is given; its offsets are torch's")
    import mmap

    pages = mmap.mmap(-1, (2**31 + 4096) * 2, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = torch.frombuffer(pages, dtype=torch.bfloat16)
    logits = whole.as_strided((2, 1000), (2**31, 1))
    logits[:] = torch.randn(2, 1000, generator=torch.Generator().manual_seed(8)).bfloat16()
    ids = torch.tensor([7, 999])
    expected, _ = ak.token_logprobs(logits.contiguous(), ids, backend=backend)
    assert torch.equal(ak.token_logprobs(logits, ids, backend=backend)[0], expected)


def test_log_probs_are_the_gates_own_bits():
    """What the sampler reports at T = 1 and what training recomputes are one routine."""
    if reason := ak.backends()["native"]:
        pytest.skip(reason)
    logits = 5 * torch.randn(64, 32001, generator=torch.Generator().manual_seed(9))
    sample = ak.mode_sample(logits, seeds=3, backend="native")
    assert torch.equal(ak.token_logprobs(logits, sample.tokens, backend="native")[0], sample.raw_logprobs)


def test_float64_is_served_by_the_reference_and_checked_by_differences():
    logits = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(10)).requires_grad_()
    ids, mask = torch.tensor([0, 5, 2, -100]), torch.tensor([True, True, True, False])

    def both(x):
        logprobs, entropy = ak.token_logprobs(x, ids, mask, 0.7, entropy=True)
        return logprobs, entropy

    assert both(logits)[0].dtype == torch.float64
    assert torch.autograd.gradcheck(both, logits)
    with pytest.raises(ValueError, match="backend='native' takes float32, bfloat16 or float16"):
        ak.token_logprobs(logits, ids, mask, backend="native")


def test_only_what_is_asked_for_has_a_gradient():
    if reason := ak.backends()["native"]:
        pytest.skip(reason)
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(11), requires_grad=True)
    ids = torch.tensor([1, 2, 3])
    logprobs, entropy = ak.token_logprobs(logits, ids, entropy=True, backend="native")
    (grad,) = torch.autograd.grad(entropy.sum(), logits, retain_graph=True)
    wanted = torch.autograd.grad(ak.token_logprobs(logits, ids, entropy=True, backend="reference")[1].sum(), logits)[0]
    torch.testing.assert_close(grad, wanted, rtol=0, atol=1e-6)
    assert ak.token_logprobs(logits, ids, backend="native")[1] is None
    with pytest.raises(RuntimeError, match="no second derivative"):
        (grad,) = torch.autograd.grad(logprobs.sum(), logits, create_graph=True)
        grad.sum().backward()
    with torch.no_grad():
        assert not ak.token_logprobs(logits, ids, backend="native")[0].requires_grad


BAD = [
    ({"logits": [1.0]}, TypeError, "logits must be"),
    ({"logits": torch.zeros(3, 4, dtype=torch.int64)}, TypeError, "logits must be"),
    ({"logits": torch.zeros(4)}, ValueError, r"logits must be \[N, V\]"),
    ({"logits": torch.zeros(3, 0)}, ValueError, "V >= 1"),
    ({"logits": torch.zeros(4, 3).t()}, ValueError, "contiguous in the last dimension"),
    ({"ids": torch.zeros(2, dtype=torch.int64)}, ValueError, r"ids must have the shape \(3,\).*got \(2,\)"),
    ({"ids": torch.zeros(3)}, TypeError, "ids must be an integer tensor; got torch.float32"),
    ({"ids": [1, 2, 3]}, TypeError, "ids must be an integer tensor; got list"),
    ({"ids": torch.tensor([0, 4, 0])}, ValueError, r"ids must be in \[0, 4\) where the mask is true; got 4"),
    ({"ids": torch.tensor([0, -100, 0])}, ValueError, "got -100"),
    ({"mask": torch.ones(4)}, ValueError, r"mask must have the shape \(3,\)"),
    ({"mask": torch.tensor([0.0, 0.5, 1.0])}, ValueError, "mask must be boolean, or 0 and 1; got 0.5"),
    ({"temperature": 0}, ValueError, "temperature must be above 0"),
    ({"temperature": NAN}, ValueError, "temperature must be above 0"),
    ({"temperature": INF}, ValueError, "temperature must be above 0 and finite"),
    ({"temperature": torch.tensor([1.0, -1.0, 1.0])}, ValueError, "got -1.0"),
    ({"temperature": torch.ones(2)}, ValueError, r"temperature must be a scalar or .*\(3,\); got \(2,\)"),
    ({"temperature": "warm"}, TypeError, "temperature must be a number"),
    ({"backend": "fast"}, ValueError, "backend='fast'"),
    ({"backend": "triton"}, ValueError, "token_logprobs has no backend='triton'"),
]


@pytest.mark.parametrize(
    ("change", "error", "text"), BAD, ids=[f"{next(iter(c))}-{i}" for i, (c, _, _) in enumerate(BAD)]
)
def test_bad_input(change, error, text):
    arguments = {"logits": torch.zeros(3, 4), "ids": torch.zeros(3, dtype=torch.int64), **change}
    with pytest.raises(error, match=text):
        ak.token_logprobs(**arguments)


def test_compiles_without_a_graph_break():
    if reason := ak.backends()["native"]:
        pytest.skip(reason)
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(12))
    ids, mask = torch.tensor([1, 2, -100, 4]), torch.tensor([True, True, False, True])

    def step(x):
        logprobs, entropy = ak.token_logprobs(2 * x, ids, mask, entropy=True)
        return (logprobs + 0.1 * entropy).sum()

    grads = []
    for run in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaf = logits.clone().requires_grad_()
        run(leaf).backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)
