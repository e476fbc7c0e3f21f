import pytest
import tiny_models
from tiny_models import FAST, SLOW

import adapt_kernels as ak

pytest.register_assert_rewrite("parity")


@pytest.fixture
def modes():
    return ak.Modes(fast=FAST, slow=SLOW)


@pytest.fixture
def llama():
    """A fresh unpatched model: tests may patch it and leave it so."""
    return tiny_models.build("llama")


@pytest.fixture
def patched_llama(llama, modes):
    return ak.patch(llama, modes)
