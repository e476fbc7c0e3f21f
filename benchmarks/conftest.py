"""What every benchmark shares: one thread, process CPU time, rounds by cost, and results without machine names.

    make bench                                        # all of it, about half an hour
    make bench ARGS="-k 'mode_sample and rows8'"      # a part

Figures of one run compare with each other: peers and the floor (one read of the same bytes) run in the same process on
the same inputs. Absolute times of two machines, or of a busy one, do not.
"""

import platform
import time
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch
from peak_memory import peak_bytes

_PACKAGES = ("torch", "transformers", "triton", "trl", "liger_kernel", "flash-attn", "quack-kernels")
_PACKAGES += ("flashinfer-python", "vllm")
# Seconds spent on rounds of one case; at least one round, at most twenty.
_BUDGET = 0.5


def pytest_configure(config):
    torch.set_num_threads(1)
    config.option.benchmark_timer = "time.process_time"


@pytest.fixture
def measure(benchmark):
    """measure(call): a call or two to warm up and to learn the cost, then as many rounds as the budget allows.

    least: rounds at any cost. fresh: bytes of the call's result; its peak beyond them is recorded as `extra_bytes`.
    """

    def run(call, least=1, fresh=None):
        for _ in range(2):
            start = time.process_time()
            call()
            cost = max(time.process_time() - start, 1e-6)
            if cost > 1:
                break
        rounds = int(min(20, max(least, _BUDGET / cost)))
        benchmark.pedantic(call, rounds=rounds, iterations=int(min(50, max(1, 1e-3 / cost))))
        if fresh is not None and (peak := peak_bytes(call)) is not None:
            benchmark.extra_info["extra_bytes"] = max(0, peak - fresh)

    return run


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """Versions and the processor's kind instead of the machine's name and the checkout's state; few numbers a case."""
    output_json.clear()
    output_json["environment"] = {
        "python": platform.python_version(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "timer": "process CPU time",
        **{name: _version(name) for name in _PACKAGES},
    }
    output_json["seconds"] = {
        bench.name: {"min": bench.stats.min, "median": bench.stats.median, "rounds": bench.stats.rounds}
        for bench in benchmarks
    }
    counts = {bench.name: bench.extra_info for bench in benchmarks if bench.extra_info}
    if counts:
        output_json["counts"] = counts


def _version(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _processor():
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
