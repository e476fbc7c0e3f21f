"""What is asked of torch.cuda around a capture, and what is left after one that failed."""

import contextlib
import types

import pytest
import torch

from adapt_kernels.hf.loop.graph_device import CudaGraphs

DEVICE = torch.device("cuda", 0)


class Cuda:
    """torch.cuda of one device. breaks: the capture is spoilt, and ending it raises, as in torch."""

    def __init__(self):
        self.breaks, self.log, self.current = False, [], "caller's"
        self.CUDAGraph = lambda: types.SimpleNamespace(
            capture_end=self._end, **{name: lambda name=name: self.log.append(name) for name in ("reset", "replay")}
        )

    def Stream(self, device):
        return Stream(self, "ours")

    def current_stream(self):
        return Stream(self, self.current)

    def set_stream(self, stream):
        self.current = stream.name

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream.name
        yield
        self.current = before

    def device(self, device):
        assert device == DEVICE
        return contextlib.nullcontext()

    def synchronize(self):
        self.log.append("synchronize")

    def graph(self, graph, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"
        return Capture(self, graph, stream)

    def _end(self):
        self.log.append("end")
        if self.breaks:
            raise RuntimeError("capture was invalidated")


class Stream:
    def __init__(self, cuda, name):
        self._cuda, self.name = cuda, name

    def wait_stream(self, other):
        self._cuda.log.append(f"{self.name} waits for {other.name}")


class Capture:
    """torch.cuda.graph, which leaves its stream the current one where the end of a capture raises."""

    def __init__(self, cuda, graph, stream):
        self._cuda, self._graph, self._stream = cuda, graph, stream

    def __enter__(self):
        self._cuda.log.append("begin")
        self._before, self._cuda.current = self._cuda.current, self._stream.name

    def __exit__(self, *_):
        self._graph.capture_end()
        self._cuda.current = self._before


@pytest.fixture
def cuda(monkeypatch):
    fake = Cuda()
    monkeypatch.setattr(torch, "cuda", fake)
    return fake


def test_a_run_is_warmed_up_captured_replayed_and_released(cuda):
    graphs = CudaGraphs(DEVICE)
    with graphs.warming():
        assert cuda.current == "ours"
    captured = graphs.capture(lambda: cuda.current)
    assert captured.outputs == "ours" and cuda.current == "caller's"
    captured.replay()
    captured.release()
    assert captured.outputs is None
    waits = ["ours waits for caller's", "caller's waits for ours"]
    assert cuda.log == [*waits, "begin", "end", "replay", "reset"]


@pytest.mark.parametrize("spoilt", [True, False])
def test_a_failed_capture_is_ended_and_the_caller_s_stream_is_back(cuda, spoilt):
    cuda.breaks = spoilt

    def run():
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs = CudaGraphs(DEVICE)
    with pytest.raises(RuntimeError):
        graphs.capture(run)
    assert cuda.log == ["begin", "end", "end", "reset", "synchronize"] and cuda.current == "caller's"
    cuda.breaks = False
    assert graphs.capture(lambda: 1).outputs == 1


def test_only_a_cuda_device_has_graphs():
    assert CudaGraphs.missing(DEVICE) is None
    assert "on meta, and CUDA graphs are for" in CudaGraphs.missing(torch.device("meta"))
