"""Where `make gpu` runs, and its clock: CUDA events around graph replays, or process time in a dry run on a CPU."""

import statistics
import time
from contextlib import suppress
from typing import NamedTuple

import torch


class NotRun(Exception):
    """A check or a case that cannot run here, and why."""


class Device(NamedTuple):
    """name: "cuda", or "cpu" for a dry run, where Triton's interpreter stands in. tiny: sizes for what is slow."""

    name: str
    tiny: bool

    @property
    def real(self) -> bool:
        """Whether it is a GPU."""
        return self.name == "cuda"

    def pick(self, full, tiny):
        """A size."""
        return tiny if self.tiny else full

    def alive(self) -> bool:
        """Whether it still answers: after an illegal access, or when it falls off the bus, every call fails."""
        try:
            self.synchronize()
        except RuntimeError:
            return False
        return True

    def synchronize(self) -> None:
        """Waits for the device."""
        if self.real:
            torch.cuda.synchronize()


class Clock:
    """Seconds of calls, with the caches warm and cold."""

    def __init__(self, device: Device, rounds: int = 15):
        self.device, self.rounds = device, rounds
        l2 = torch.cuda.get_device_properties(0).L2_cache_size if device.real else 0
        # Twice the second-level cache, written before every cold round.
        self._flush = torch.empty(2 * l2, dtype=torch.int8, device=device.name)

    def seconds(self, call) -> dict:
        """{"warm", "cold": median seconds, "graph": whether a CUDA graph was replayed}; on a CPU no "cold"."""
        if not self.device.real:
            call()
            return {"warm": self._process_time(call), "graph": False}
        run, graph = _captured(call)
        return {"warm": self._warm(run), "cold": self._cold(run), "graph": graph}

    def wall_seconds(self, call) -> float:
        """Of one long call that waits for the device by itself: wall time on a GPU, process time on a CPU."""
        clock = time.perf_counter if self.device.real else time.process_time
        self.device.synchronize()
        start = clock()
        call()
        self.device.synchronize()
        return clock() - start

    def _process_time(self, call) -> float:
        start = time.process_time()
        call()
        return time.process_time() - start

    def _warm(self, run) -> float:
        one = _event_seconds(run)
        # Back to back, so that the gap between two events does not count.
        in_a_row = int(min(200, max(1, 2e-3 / max(one, 1e-7))))
        return statistics.median(_event_seconds(run, in_a_row) for _ in range(self.rounds))

    def _cold(self, run) -> float:
        def once():
            self._flush.zero_()
            return _event_seconds(run)

        return statistics.median(once() for _ in range(self.rounds))


def bandwidth(device: Device, clock: Clock) -> float:
    """Bytes per second of a device-to-device copy, read and written bytes counted."""
    source = torch.empty(device.pick(1 << 31, 1 << 20), dtype=torch.int8, device=device.name)
    target = torch.empty_like(source)
    return 2 * source.nbytes / clock.seconds(lambda: target.copy_(source))["warm"]


def _captured(call):
    """(replay of a graph of `call`, True), or (`call`, False) where it cannot be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    if _waits(call):
        return call, False
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:
        _abandon(graph)
        return call, False
    return graph.replay, True


def _waits(call) -> bool:
    """Whether `call` reads from the device: told here, for a capture that such a read breaks spoils later ones."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError:
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
    return False


def _abandon(graph) -> None:
    """Ends a capture that failed, which torch leaves open; a device that is gone raises here."""
    for end in (graph.capture_end, graph.reset):
        with suppress(RuntimeError):
            end()
    torch.cuda.synchronize()


def _event_seconds(run, times: int = 1) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3 / times
