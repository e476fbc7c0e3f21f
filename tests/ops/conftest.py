"""Every op test runs on each backend this version has; one that cannot run here is skipped with its reason."""

from functools import partial

import pytest
import torch
from on_gpu import CUDA, moved

import adapt_kernels as ak

pytest.register_assert_rewrite("triton_mode_sample_check")

CREDIT_OPS = ("token_logprobs", "policy_loss", "linear_policy_loss")


@pytest.fixture(scope="session", params=list(ak.backends()))
def backend(request):
    reason = ak.backends()[request.param]
    if reason is not None:
        pytest.skip(f"backend {request.param}: {reason}")
    return request.param


@pytest.fixture(scope="session")
def sample(backend):
    on_gpu = backend == "triton" and torch.cuda.is_available()
    return partial(moved(ak.mode_sample, "triton", "triton") if on_gpu else ak.mode_sample, backend=backend)


@pytest.fixture(scope="session")
def sample64(backend, sample):
    """mode_sample for float64 logits, which only the reference backend takes."""
    if backend != "reference":
        pytest.skip("only the reference backend takes float64 logits")
    return sample


@pytest.fixture(params=["reference", "native", pytest.param(CUDA, marks=pytest.mark.gpu)])
def credit_backend(request, monkeypatch):
    """The name of a backend on the CPU; or "cuda", by which `ak`'s credit ops then mean "native" on a GPU."""
    if request.param == CUDA:
        if not torch.cuda.is_available():
            pytest.skip("no GPU")
        for name in CREDIT_OPS:
            monkeypatch.setattr(ak, name, moved(getattr(ak, name), CUDA, "native"))
        return CUDA
    reason = ak.backends()[request.param]
    if reason is not None:
        pytest.skip(f"backend {request.param}: {reason}")
    return request.param


@pytest.fixture
def native():
    if reason := ak.backends()["native"]:
        pytest.skip(reason)
    return "native"


@pytest.fixture
def poisoned_workspace():
    """torch.empty returns NaN or the largest integer, so that nothing unwritten can pass."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
