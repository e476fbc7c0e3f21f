import pytest
import tiny_base
import tiny_runs
import torch

from adapt_recipes.training import adapter_sft
from adapt_recipes.training.adapter_config import AdapterConfig


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


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return tiny_base.save_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="session")
def adapter_config(base):
    return AdapterConfig(base=str(base), steps=5, problems=4, passes=2, rank=2, alpha=4.0, warmup_steps=1, threads=1)


@pytest.fixture(scope="session")
def trained(adapter_config, tmp_path_factory):
    out = tmp_path_factory.mktemp("adapter") / "adapter"
    adapter_sft.train(adapter_config, out)
    return out
