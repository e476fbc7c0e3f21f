"""From the ops down to the CUDA kernels through their Python binding, on the host: device and stream are played."""

import shutil
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from credit_on_host import compile_binding, cuda_home

import adapt_kernels as ak
from adapt_kernels import dispatch
from adapt_kernels.native import jit, jit_cuda, kernels

STREAM = 0x5EED0
needs_host = pytest.mark.skipif(
    cuda_home() is None or shutil.which("g++") is None or jit.unavailable_reason() is not None,
    reason="g++, Python's headers and the CUDA toolkit's headers are needed",
)


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    path = compile_binding(tmp_path_factory.mktemp("binding"))
    return jit.import_built(jit.Extension("adapt_cuda", path.parent), path)


class Played:
    """A GPU that is the CPU: records what reaches the module, and what is current meanwhile."""

    def __init__(self, module):
        self.module, self.calls, self.current = module, [], None

    def __getattr__(self, name):
        function = getattr(self.module, name)

        def call(*arguments):
            self.calls.append((name, self.current, arguments[-1]))
            return function(*arguments)

        return call

    @contextmanager
    def device(self, device):
        self.current = device
        try:
            yield
        finally:
            self.current = None


@pytest.fixture
def play(monkeypatch):
    def start(module):
        gpu = Played(module)
        monkeypatch.setattr(kernels, "on_gpu", lambda device: True)
        monkeypatch.setattr(jit_cuda, "load", {"sm_90": gpu}.__getitem__)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        monkeypatch.setattr(torch.cuda, "device", gpu.device)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=STREAM))
        return gpu

    dispatch._runnable.cache_clear()
    yield start
    dispatch._runnable.cache_clear()


def problem(dtype):
    """Every row argument differs from row to row; no two strides are equal."""
    generator = torch.Generator().manual_seed(5)
    logits = (3 * torch.randn(3, 2, 310, generator=generator)).to(dtype)[:, :, 5:305].transpose(0, 1)
    shape = logits.shape[:-1]
    uniform = torch.rand(4, *shape, generator=generator)
    ids = torch.randint(0, 300, shape, generator=generator)
    old = ak.token_logprobs(logits, ids, backend="reference")[0] + uniform[0] - 0.5
    mask = torch.ones(shape, dtype=torch.bool)
    mask[1, 2] = False
    rows = {
        "advantages": 4 * uniform[1] - 2,
        "mask": mask,
        "kinds": torch.tensor([[1, 2, 3], [2, 1, 1]]),
        "weights": uniform[2],
        "ref_logprobs": old - uniform[3],
        "temperature": 0.5 + uniform[3],
    }
    return logits, ids, old, rows


SETTINGS = {"clip_low": 0.1, "clip_high": 0.3, "dual_clip": 1.5, "kl_coef": 0.2, "entropy_coef": 0.05}


def close(got, wanted, dtype=torch.float32):
    unit = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    largest = max(wanted.double().abs().max().item(), 1e-3)
    torch.testing.assert_close(got, wanted, rtol=0, atol=unit * largest)


@needs_host
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_argument_reaches_the_kernel(module, play, dtype):
    logits, ids, old, rows = problem(dtype)
    scored = rows["mask"], rows["temperature"]
    wanted = logits.detach().requires_grad_()
    score = ak.token_logprobs(wanted, ids, *scored, entropy=True, backend="reference")
    (2 * score[0] - score[1]).sum().backward()
    whole = logits.detach().requires_grad_()
    out = ak.policy_loss(whole, ids, old, **rows, **SETTINGS, backend="reference")
    out.loss.backward()

    gpu = play(module)
    leaf = logits.detach().requires_grad_()
    found = ak.token_logprobs(leaf, ids, *scored, entropy=True, backend="native")
    (2 * found[0] - found[1]).sum().backward()
    close(found[0], score[0])
    close(found[1], score[1])
    close(leaf.grad, wanted.grad, dtype)
    buffer = torch.full((2, 3, 320), 7.0, dtype=dtype)
    for grad_out in (None, buffer[:, :, 11:311]):
        leaf = logits.detach().requires_grad_()
        result = ak.policy_loss(leaf, ids, old, **rows, **SETTINGS, grad_out=grad_out, grad_scale=0.5, backend="native")
        for got, value in zip(result, out, strict=True):
            close(got.float(), value.float())
        # Once what it was written for, once not.
        factor = 0.5 if grad_out is None else 2.0
        (factor * result.loss).backward(retain_graph=True)
        close(leaf.grad / factor, whole.grad, dtype)
        with pytest.raises(RuntimeError, match="gives its gradient once on a GPU"):
            result.loss.backward()
    assert (buffer[:, :, :11] == 7).all() and (buffer[:, :, 311:] == 7).all()
    names = ["token_logprobs_workspace", "token_logprobs_cuda", "logit_gradient_cuda", "policy_loss_cuda"]
    assert [name for name, *_ in gpu.calls] == [*names, "rescale_cuda", "policy_loss_cuda", "rescale_cuda"]
    assert all(current == logits.device for _, current, _ in gpu.calls)
    assert all(last == STREAM for name, _, last in gpu.calls if name.endswith("_cuda"))


@needs_host
def test_linear_policy_loss_runs_the_same_kernel(module, play):
    generator = torch.Generator().manual_seed(6)
    hidden, weight = torch.randn(7, 16, generator=generator), torch.randn(90, 16, generator=generator)
    ids, old = torch.arange(7), torch.full((7,), -6.0)
    advantages, mask = torch.linspace(-1, 1, 7), torch.arange(7) != 3

    def run(backend):
        leaves = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
        out = ak.linear_policy_loss(*leaves, ids, old, advantages, mask, backend=backend, chunk_rows=4)
        out.loss.backward()
        return *out, *(leaf.grad for leaf in leaves)

    wanted = run("reference")
    gpu = play(module)
    for got, value in zip(run("native"), wanted, strict=True):
        close(got.float(), value.float())
    assert [name for name, *_ in gpu.calls] == ["policy_loss_cuda"] * 2


@pytest.mark.parametrize(("status", "cause"), [(1, "a dtype it does not know"), (2, "CUDA refused the launch")])
def test_a_kernel_that_refuses_raises_and_leaves_the_device(play, status, cause):
    gpu = play(SimpleNamespace(policy_loss_cuda=lambda *_: status))
    with pytest.raises(RuntimeError, match=f"policy_loss's native kernel returned status {status}: {cause}"):
        ak.policy_loss(torch.zeros(2, 5), torch.tensor([1, 2]), 0.0, 1.0, backend="native")
    assert gpu.calls and gpu.current is None


def test_outputs_and_workspace_are_made_on_the_device_of_the_logits(monkeypatch):
    """On the meta device, which has no memory: a tensor made elsewhere would have an address."""
    seen = []
    recorder = SimpleNamespace(
        token_logprobs_workspace=lambda count, vocab_size: 16 * count,
        **{
            f"{name}_cuda": lambda *a: seen.append(a) or 0
            for name in ("token_logprobs", "logit_gradient", "policy_loss")
        },
    )

    @contextmanager
    def queue(device):
        yield recorder, STREAM

    monkeypatch.setattr(kernels, "on_gpu", lambda device: True)
    monkeypatch.setattr(kernels, "_queue", queue)
    from adapt_kernels.ops.policy_loss import native as policy
    from adapt_kernels.ops.token_logprobs import native as score

    logits = torch.empty(3, 1, 9, device="meta")
    ids, slope = torch.empty(3, dtype=torch.int64, device="meta"), torch.empty(3, dtype=torch.float64, device="meta")
    results = [*score._score(logits, ids, None, 1.0, None)]
    results.append(score._gradient(logits, ids, None, 1.0, None, slope, slope, slope))
    results += policy._loss(logits, ids, None, 1.0, None, slope, slope, None, None, None, *[0.0] * 6, True)
    assert len(seen) == 3 and all(result.device.type == "meta" for result in results)
    numbers = 3, 1, 9, 9, 9  # count, inner, vocabulary, strides
    assert all(arguments[0] == 0 and arguments[2:7] == numbers and arguments[-1] == STREAM for arguments in seen)
