"""The one place that captures CUDA graphs."""

import threading
from collections.abc import Callable
from contextlib import contextmanager, suppress
from typing import Any

import torch

_LOCK = threading.Lock()  # torch allows one capture at a time


class CapturedRun:
    """A run as a graph. outputs: what it returned, at the addresses that `replay` writes again."""

    def __init__(self, graph, outputs):
        self._graph, self.outputs = graph, outputs

    def replay(self) -> None:
        self._graph.replay()

    def release(self) -> None:
        """Give its memory back; the outputs must not be read any more."""
        self.outputs = None
        self._graph.reset()


class CudaGraphs:
    """Captures on one device, on a stream of its own."""

    def __init__(self, device: torch.device):
        self._device, self._stream = device, torch.cuda.Stream(device)

    @staticmethod
    def missing(device: torch.device) -> str | None:
        """Why nothing can be captured on a device, or None."""
        return None if device.type == "cuda" else f"the model is on {device}, and CUDA graphs are for a CUDA device"

    @contextmanager
    def warming(self):
        """Run inside what will be captured: libraries and compilers do what they do once."""
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                yield
            current.wait_stream(self._stream)

    def capture(self, run: Callable[[], Any]) -> CapturedRun:
        """`run`, recorded and not executed. Where that fails nothing is left of it."""
        with _LOCK, torch.cuda.device(self._device):
            graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
            try:
                # Other threads may use the device meanwhile.
                with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                    outputs = run()
            except BaseException:
                _abandon(graph, current)
                raise
        return CapturedRun(graph, outputs)


def _abandon(graph, stream) -> None:
    """Ends a capture that failed: torch leaves it open, and its stream the current one."""
    for end in (graph.capture_end, graph.reset):
        with suppress(RuntimeError):
            end()
    torch.cuda.set_stream(stream)
    torch.cuda.synchronize()
