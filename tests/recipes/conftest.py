import pytest
import tiny_runs
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """More threads fight over shared cores, and training is bit-equal only at a fixed number of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def whole_sft(tmp_path_factory):
    return tiny_runs.run(tiny_runs.SFT, tmp_path_factory.mktemp("sft") / "whole")


@pytest.fixture(scope="session")
def whole_rl(tmp_path_factory):
    return tiny_runs.run(tiny_runs.RL, tmp_path_factory.mktemp("rl") / "whole")
