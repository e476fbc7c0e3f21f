import pytest
from fake_graphs import FakeGraphs

from adapt_kernels.hf.loop import step_graph


@pytest.fixture
def graphs(monkeypatch):
    """CUDA graphs on a CPU; every one that a test leaves behind is a failure."""
    FakeGraphs.reset()
    monkeypatch.setattr(step_graph, "_GRAPHS", FakeGraphs)
    yield FakeGraphs
    assert not FakeGraphs.alive and not FakeGraphs.capturing
