import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """More threads fight over shared cores, and training is bit-equal only at a fixed number of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
