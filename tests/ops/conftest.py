"""Every op test runs on each backend this version has; one that cannot run here is skipped with its reason."""

from functools import partial

import pytest

import adapt_kernels as ak


@pytest.fixture(scope="session", params=list(ak.backends()))
def backend(request):
    reason = ak.backends()[request.param]
    if reason is not None:
        pytest.skip(f"backend {request.param}: {reason}")
    return request.param


@pytest.fixture(scope="session")
def sample(backend):
    return partial(ak.mode_sample, backend=backend)


@pytest.fixture(scope="session")
def sample64(backend, sample):
    """mode_sample for float64 logits, which only the reference backend takes."""
    if backend != "reference":
        pytest.skip("only the reference backend takes float64 logits")
    return sample
