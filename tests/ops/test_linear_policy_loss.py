"""linear_policy_loss: equal to the path over all logits, for every kind of head, mask and chunk."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import adapt_kernels as ak
from adapt_kernels.ops import lm_head
from adapt_kernels.ops.lm_head import HeadGradients, LmHead

HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "gemma2": {"softcap": 3.0},
    "cohere": {"logit_scale": 0.0625},
    "granite": {"logit_scale": 1 / 8, "bias": True},
    "everything": {"softcap": 2.5, "logit_scale": 0.7, "bias": True},
}


@pytest.fixture
def backend(credit_backend):
    return credit_backend


def problem(head, rows=23, width=16, vocab_size=301, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    hidden = (2 * torch.randn(rows, width, generator=generator)).to(dtype)
    weight = torch.randn(vocab_size, width, generator=generator).to(dtype)
    settings = dict(HEADS[head])
    if settings.get("bias"):
        settings["bias"] = torch.randn(vocab_size, generator=generator).to(dtype)
    ids = torch.randint(0, vocab_size, (rows,), generator=generator)
    old = -4 + torch.randn(rows, generator=generator)
    advantages = torch.randn(rows, generator=generator)
    advantages[::5] = 0
    return hidden, weight, ids, old, advantages, settings


def materialised(hidden, weight, settings):
    """The head as gemma2, cohere and granite write it."""
    logits = hidden @ weight.t()
    if settings.get("bias") is not None:
        logits = logits + settings["bias"]
    logits = logits * settings.get("logit_scale", 1.0)
    softcap = settings.get("softcap")
    return torch.tanh(logits / softcap) * softcap if softcap else logits


def leaves(*tensors):
    return [None if t is None else t.detach().clone().requires_grad_() for t in tensors]


def both_ways(problem, backend, mask=None, chunk_rows=None, **rest):
    """(results, gradients) of the chunked op, and of the path over float64 logits."""
    hidden, weight, ids, old, advantages, settings = problem
    ways = []
    for exact in (False, True):
        h, w, b = leaves(hidden, weight, settings.get("bias"))
        if exact:
            parts = {**settings, "bias": None if b is None else b.double()}
            logits = materialised(h.double(), w.double(), parts)
            out = ak.policy_loss(logits, ids, old, advantages, mask, backend="reference", **rest)
        else:
            head = {**settings, "bias": b}
            out = ak.linear_policy_loss(
                h, w, ids, old, advantages, mask, chunk_rows=chunk_rows, backend=backend, **head, **rest
            )
        out.loss.backward()
        ways.append((out, [t.grad for t in (h, w, b) if t is not None]))
    return ways


def assert_close(ways, tolerance):
    (out, grads), (wanted, exact) = ways
    for name, got, value in zip(out._fields, out, wanted, strict=True):
        if got.dtype == torch.bool:
            assert torch.equal(got, value), name
        else:
            torch.testing.assert_close(got.double(), value.double(), rtol=tolerance, atol=tolerance, msg=name)
    for got, value in zip(grads, exact, strict=True):
        assert (got - value).abs().max() <= tolerance * value.abs().max()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("chunk_rows", [1, 5, 23, None])
def test_equal_to_the_path_over_all_logits(backend, head, chunk_rows):
    mask = torch.arange(23) % 3 != 1
    kinds = torch.arange(23) % 4
    rest = {"kinds": kinds, "weights": torch.linspace(0, 1, 23), "temperature": 0.8}
    assert_close(both_ways(problem(head), backend, mask, chunk_rows, **rest), 1e-5)
    rest |= {"entropy_coef": 0.05, "ref_logprobs": torch.full((23,), -4.0), "kl_coef": 0.1}
    assert_close(both_ways(problem(head, seed=1), backend, mask, chunk_rows, **rest), 1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_bfloat16_is_as_good_as_its_logits(backend, head):
    """Against float64 from the same bfloat16 inputs: the error is that of logits rounded to bfloat16."""
    hidden, weight, ids, old, advantages, settings = problem(head, dtype=torch.bfloat16)
    (out, grads), (wanted, exact) = both_ways((hidden, weight, ids, old, advantages, settings), backend, chunk_rows=7)
    assert out.logprobs.dtype == torch.float32 and all(g.dtype == torch.bfloat16 for g in grads)
    largest = materialised(hidden.double(), weight.double(), {**settings, "softcap": None}).abs().max()
    assert (out.logprobs - wanted.logprobs).abs().max() <= 2 * 2**-8 * largest
    for got, value in zip(grads, exact, strict=True):
        difference = (got.double() - value.double()).norm() / value.double().norm()
        assert difference <= (0.01 if backend == "reference" else 0.1)


def test_batches_of_sequences_and_masked_rows_are_never_read(backend):
    hidden, weight, ids, old, advantages, _ = problem("plain", rows=24)
    mask = (torch.arange(24) % 4 != 0).view(4, 6)
    flat = both_ways((hidden, weight, ids, old, advantages, {}), backend, mask.view(-1))
    spoiled, wrong = hidden.clone(), ids.clone()
    spoiled[~mask.view(-1)], wrong[~mask.view(-1)] = torch.nan, -100
    h, w = leaves(spoiled.view(4, 6, 16), weight)
    out = ak.linear_policy_loss(h, w, wrong.view(4, 6), old.view(4, 6), advantages.view(4, 6), mask, backend=backend)
    out.loss.backward()
    assert out.ratio.shape == (4, 6) and torch.equal(out.loss, flat[0][0].loss)
    if backend == "native":
        assert torch.equal(h.grad.view(24, 16), flat[0][1][0]) and torch.equal(w.grad, flat[0][1][1])
        assert not h.grad.view(24, 16)[~mask.view(-1)].any()


def test_nothing_active_and_nothing_at_all(backend):
    hidden, weight, ids, old, advantages, _ = problem("plain")
    if backend == "native":
        h, w = leaves(hidden, weight)
        out = ak.linear_policy_loss(h, w, ids, old, advantages, torch.zeros(23).bool(), backend=backend)
        out.loss.backward()
        assert out.loss == 0 and not h.grad.any() and not w.grad.any()
    h, w = leaves(hidden[:0], weight)
    out = ak.linear_policy_loss(h, w, ids[:0], old[:0], advantages[:0], backend=backend)
    out.loss.backward()
    assert out.loss == 0 and h.grad.shape == (0, 16) and not w.grad.any()


def test_only_wanted_gradients_and_any_factor(backend):
    hidden, weight, ids, old, advantages, _ = problem("plain")
    (expected,) = leaves(hidden)
    ak.linear_policy_loss(expected, weight, ids, old, advantages, backend=backend).loss.backward()
    for grad_scale in (1.0, 4.0):
        (h,) = leaves(hidden)
        out = ak.linear_policy_loss(h, weight, ids, old, advantages, grad_scale=grad_scale, backend=backend)
        (4 * out.loss).backward()
        torch.testing.assert_close(h.grad, 4 * expected.grad, rtol=1e-6, atol=1e-7)
    with torch.no_grad():
        assert not ak.linear_policy_loss(expected, weight, ids, old, advantages, backend=backend).loss.requires_grad


def test_memory_does_not_grow_with_the_rows():
    """The largest storage any torch operation makes, the chunk of logits included, at N and at 8 N."""
    if reason := ak.backends()["native"]:
        pytest.skip(reason)

    def peak(rows):
        hidden, weight, ids, old, advantages, _ = problem("plain", rows=rows, vocab_size=5003)
        largest = 0

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                nonlocal largest
                out = func(*args, **(kwargs or {}))
                for tensor in out if isinstance(out, (tuple, list)) else (out,):
                    if torch.is_tensor(tensor):
                        largest = max(largest, tensor.untyped_storage().nbytes())
                return out

        with Watch():
            ak.linear_policy_loss(
                hidden.requires_grad_(), weight.requires_grad_(), ids, old, advantages, chunk_rows=8, backend="native"
            )
        return largest

    assert peak(512) == peak(64) < 512 * 5003 * 4


def test_compiles_without_a_graph_break():
    if reason := ak.backends()["native"]:
        pytest.skip(reason)
    hidden, weight, ids, old, advantages, _ = problem("plain")

    def step(h, w):
        return ak.linear_policy_loss(2 * h, w, ids, old, advantages, torch.arange(23) != 4, chunk_rows=6).loss

    grads = []
    for run in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        h, w = leaves(hidden, weight)
        run(h, w).backward()
        grads.append((h.grad, w.grad))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_gradcheck_of_the_reference():
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(6, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, generator=generator, requires_grad=True)

    def loss(h, w, b):
        return ak.linear_policy_loss(
            h, w, torch.tensor([1, 2, 5]), -1.7, 1.0, kinds=3, bias=b, softcap=2.0, logit_scale=0.5, entropy_coef=0.1
        ).loss

    assert torch.autograd.gradcheck(loss, (hidden, weight, bias))


BAD = [
    ({"hidden": torch.zeros(3)}, ValueError, r"hidden must be \[N, D\] or \[B, T, D\]"),
    ({"hidden": [1]}, TypeError, "hidden must be a float32"),
    ({"weight": torch.zeros(5, 3)}, ValueError, r"weight must be \[V, D\] with D = 4"),
    ({"weight": torch.zeros(5, 4).half()}, ValueError, "weight must have hidden's dtype"),
    ({"bias": torch.zeros(4)}, ValueError, r"bias must be \[V\] = \(5,\)"),
    ({"bias": 1.0}, ValueError, "or None; got float"),
    ({"softcap": 0}, ValueError, "softcap must be a number above 0"),
    ({"logit_scale": -1.0}, ValueError, "logit_scale must be a number above 0"),
    ({"chunk_rows": 0}, ValueError, "chunk_rows must be an integer of at least 1"),
    ({"temperature": torch.ones(3)}, TypeError, "temperature must be one number"),
    ({"ids": torch.tensor([0, 5, 0])}, ValueError, r"ids must be in \[0, 5\)"),
    ({"ids": torch.zeros(4).long()}, ValueError, r"ids must have the shape \(3,\)"),
    ({"grad_scale": -1}, ValueError, "grad_scale must be"),
    ({"backend": "triton"}, ValueError, "linear_policy_loss has no backend='triton'"),
]


@pytest.mark.parametrize(
    ("change", "error", "text"), BAD, ids=[f"{next(iter(c))}-{i}" for i, (c, _, _) in enumerate(BAD)]
)
def test_bad_input(change, error, text):
    base = {"hidden": torch.zeros(3, 4), "weight": torch.zeros(5, 4), "ids": torch.zeros(3).long()}
    with pytest.raises(error, match=text):
        ak.linear_policy_loss(**{**base, "old_logprobs": 0.0, "advantages": 1.0, **change})


def test_chunks_are_larger_on_a_gpu():
    """There every chunk costs a pass over the weight's gradient."""
    with FakeTensorMode():
        weights = {name: torch.empty(151936, 8, dtype=torch.bfloat16, device=name) for name in ("cpu", "cuda")}
    rows = torch.arange(5000)
    sizes = {n: [len(part) for part in LmHead(w, None, None, 1.0).chunks(rows, None)] for n, w in weights.items()}
    assert sizes["cpu"][0] == 441 and sizes["cuda"] == [2070, 2070, 860]
    assert [len(part) for part in LmHead(weights["cuda"], None, 30.0, 1.0).chunks(rows, None)][0] == 1035


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_gpu_sums_the_head_s_gradient_within_the_gemm(monkeypatch, dtype):
    """In the form of `addmm` that only GPUs have: what it is asked for, and that it sums chunk by chunk in float32."""
    generator = torch.Generator().manual_seed(0)
    weight, hidden = (torch.randn(n, 16, generator=generator).to(dtype) for n in (301, 12))
    gradient, calls = torch.randn(12, 301, generator=generator).to(dtype), []

    def addmm(summed, a, b, *, out_dtype, out):
        calls.append((a.dtype, b.dtype, out_dtype))
        assert out is summed
        return out.copy_(summed + a.float() @ b.float())

    monkeypatch.setattr(lm_head, "_FLOAT32_GEMM", ("cpu",))
    monkeypatch.setattr(torch, "addmm", addmm)
    gradients = HeadGradients(hidden, LmHead(weight, None, None, 1.0), (False, True, False))
    for rows in torch.arange(12).split(4):
        gradients.add(rows, hidden[rows], gradient[rows])
    assert calls == [(dtype, dtype, torch.float32)] * 3
    torch.testing.assert_close(gradients.weight, gradient.float().t() @ hidden.float(), atol=1e-4, rtol=1e-4)
    schemas = [str(each) for each in torch._C._jit_get_schemas_for_operator("aten::addmm")]
    assert any("ScalarType out_dtype" in each and "out)" in each for each in schemas), schemas
