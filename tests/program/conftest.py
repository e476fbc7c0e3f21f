"""Programs run on each backend of `ops.steer`; one that cannot run here is skipped with its reason."""

import pytest

import adapt_kernels as ak


@pytest.fixture(params=["reference", "native"])
def backend(request):
    reason = ak.backends()[request.param]
    if reason is not None:
        pytest.skip(f"backend {request.param}: {reason}")
    return request.param
