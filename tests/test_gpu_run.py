"""`make gpu` on machines that misbehave: failed captures, missing tools, a lost device."""

import contextlib
import importlib
import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


class Cuda:
    """What the clock uses of torch.cuda. `reads`: calls read from the device; `breaks`: captures fail; `lost`: gone."""

    def __init__(self):
        self.reads = self.breaks = self.lost = False
        self.mode, self.log = "default", []
        self.CUDAGraph = lambda: types.SimpleNamespace(
            capture_end=self._end, reset=lambda: self.log.append("reset"), replay=lambda: self.log.append("replay")
        )

    def _end(self):
        self.log.append("capture_end")
        raise RuntimeError("capture was invalidated")

    def Stream(self):
        return types.SimpleNamespace(wait_stream=lambda other: None)

    current_stream = Stream

    def stream(self, _stream):
        return contextlib.nullcontext()

    def synchronize(self):
        if self.lost:
            raise RuntimeError("CUDA error: unspecified launch failure")

    def set_sync_debug_mode(self, mode):
        self.mode = mode

    @contextlib.contextmanager
    def graph(self, _graph):
        self.log.append("capture")
        yield
        if self.breaks:
            raise RuntimeError("operation not permitted when stream is capturing")

    def call(self):
        """The work that is captured."""
        if self.reads and self.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")


@pytest.fixture
def device_module(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("gpu_device")
    for name in ("gpu_device", "gpu"):
        sys.modules.pop(name, None)


@pytest.fixture
def cuda(monkeypatch):
    fake = Cuda()
    monkeypatch.setattr(torch, "cuda", fake)
    return fake


def test_a_call_that_can_be_captured_is_replayed(device_module, cuda):
    replay, graph = device_module._captured(cuda.call)
    replay()
    assert graph and cuda.log == ["capture", "replay"] and cuda.mode == "default"


def test_a_call_that_waits_is_never_captured(device_module, cuda):
    cuda.reads = True
    assert device_module._captured(cuda.call) == (cuda.call, False)
    assert cuda.log == [] and cuda.mode == "default"


def test_a_failed_capture_is_ended_and_does_not_reach_the_next_one(device_module, cuda):
    cuda.breaks = True
    assert device_module._captured(cuda.call) == (cuda.call, False)
    assert cuda.log == ["capture", "capture_end", "reset"]
    cuda.breaks = False
    assert device_module._captured(cuda.call)[1]


def test_a_device_that_vanishes_is_told_once_and_the_rest_is_not_run(device_module, cuda, tmp_path, capsys):
    run = _run(device_module, tmp_path)
    assert run.device.alive()

    def vanishes():
        cuda.lost = True
        cuda.synchronize()

    run.stage("first", vanishes)
    run.stage("second", lambda: pytest.fail("must not run"))
    assert run.failed == ["first"]
    assert run.report["stages"]["second"]["detail"] == "the device no longer answers"
    assert "unspecified launch failure" in capsys.readouterr().out
    assert run.path.exists()


def test_a_missing_sanitizer_is_a_reason_and_not_a_failure(device_module, cuda, tmp_path, monkeypatch):
    gpu, run = importlib.import_module("gpu"), _run(device_module, tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(gpu, "Path", lambda *parts: Path(tmp_path, "nothing"))
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("must not run"))
    run.stage("memcheck", lambda: gpu.sanitizer("memcheck", run))
    assert run.report["stages"]["memcheck"]["outcome"] == "not run"
    assert run.report["stages"]["memcheck"]["detail"] == "compute-sanitizer is not installed"
    assert run.failed == []


def _run(device_module, folder):
    """A run that believes in its GPU, without looking for one."""
    gpu = importlib.import_module("gpu")
    run = object.__new__(gpu.Run)
    run.device, run.lost = device_module.Device("cuda", tiny=True), False
    run.ran, run.deadline, run.path = [], float("inf"), folder / "gpu_fake.json"
    run.report = {"environment": {}, "stages": {}, "cases": {}}
    return run


def test_a_generate_that_hangs_costs_only_what_it_had_not_measured(device_module, cuda, tmp_path, monkeypatch):
    gpu, run = importlib.import_module("gpu"), _run(device_module, tmp_path)
    run.deadline = 100.0
    monkeypatch.setattr(gpu.time, "monotonic", lambda: 0.0)
    measured = {"generate[single]-patched": {"seconds": 2.0}, "generate[single]-unpatched": {"not run": "did not end"}}

    def hangs(command, timeout, **_):
        Path(command[command.index("--out") + 1]).write_text(json.dumps(measured))
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hangs)
    run.stage("generate", lambda: gpu.generate(run))
    assert run.failed == ["generate"] and run.report["cases"] == measured
    assert "stopped 60 s after its last call should have ended" in run.report["stages"]["generate"]["detail"]


def test_a_generate_that_crashes_fails_its_stage_alone(device_module, cuda, tmp_path, monkeypatch):
    gpu, run = importlib.import_module("gpu"), _run(device_module, tmp_path)
    run.deadline = 100.0
    monkeypatch.setattr(gpu.time, "monotonic", lambda: 0.0)
    crashed = subprocess.CompletedProcess([], 139, "", "segmentation fault")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: crashed)
    run.stage("generate", lambda: gpu.generate(run))
    assert run.failed == ["generate"] and "139: segmentation fault" in run.report["stages"]["generate"]["detail"]
