"""The credit kernels of csrc/cuda as a library of the host."""

import os
import shutil
from pathlib import Path

import pytest
from credit_on_host import Credit, compile_library, cuda_home


@pytest.fixture(scope="session")
def credit(tmp_path_factory):
    if cuda_home() is None or shutil.which("g++") is None:
        pytest.skip("g++ and the CUDA toolkit's headers are needed")
    if given := os.environ.get("ADAPT_CREDIT_ON_HOST"):
        return Credit(Path(given))
    return Credit(compile_library(tmp_path_factory.mktemp("credit")))


@pytest.fixture
def device(credit):
    """The limits of the device that the host plays; an H100's again after the test."""
    before = credit.limits()
    yield credit.set_limits
    credit.set_limits(*before)
