"""Everything that needs a GPU, in one run of ten minutes: checks, then figures, then the test suite.

    make gpu                    # on a machine with an NVIDIA GPU; results in benchmarks/results/gpu_<device>.json
    make gpu ARGS=--dry-run     # every stage with tiny sizes on a CPU: proves this script, measures nothing
    make gpu ARGS="--part checks"   # what is right, without figures; "--part figures": the rest, into the same file

What is missing is named at the start, and the rest goes on. Results are written after every stage.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# What each is for; without it that part is left out.
NEEDED = {
    "transformers": "generate and the graph of a decode step",
    "triton": "mode_sample and segment_attention",
    "pybind11": "the CUDA kernels",
    "ninja": "the CUDA kernels",
    "pytest": "the test suite, and the cases that share code with the CPU's benchmarks",
}
PEERS = ("flashinfer-python", "liger-kernel", "flash-attn", "quack-kernels", "trl")
# The suite's parts that run on a GPU: arguments of pytest, and seconds at most.
TESTS = {
    "tests of the ops": (["tests/ops", "--ignore-glob=*_triton.py", "-k", "triton or cuda"], 170),
    "Triton cases": (
        [
            *("-p", "triton_on_gpu", "tests/ops/triton_mode_sample_cases.py", "tests/ops/triton_branch_cases.py"),
            *("tests/ops/triton_segment_attention_cases.py", "tests/ops/triton_kv_scores_cases.py"),
            "tests/program/triton_steer_cases.py",
        ],
        120,
    ),
    "generate as on the CPU": (["tests/hf/test_on_device.py"], 100),
    "fuzzer": (["tests/hf/test_fuzz.py", "-k", "fixed_cases"], 100),
}


class Run:
    """Stages, their outcomes and figures, and the time that is left."""

    def __init__(self, options):
        from gpu_device import Device

        self.device = Device("cpu" if options.dry_run else "cuda", tiny=options.dry_run or options.watched)
        self.deadline = time.monotonic() + options.seconds
        self.lost = False
        kept = not options.watched and not (options.dry_run and options.out is None)
        self.path = self._path(options.out) if kept else None
        self.report = {"environment": environment(self.device), "stages": {}, "cases": {}}
        self.ran: list[str] = []
        if options.part != "all" and self.path is not None and self.path.exists():
            other = json.loads(self.path.read_text("utf-8"))
            # What other versions gave does not go under these.
            self.report = other if other["environment"] == self.report["environment"] else self.report

    def _path(self, folder) -> Path:
        import torch

        name = torch.cuda.get_device_name() if self.device.real else "dry run"
        return Path(folder or RESULTS) / f"gpu_{re.sub('[^a-z0-9]+', '_', name.lower()).strip('_')}.json"

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def stage(self, name, work) -> None:
        """Runs one stage; its line goes to the terminal, its outcome to the report."""
        from gpu_device import NotRun

        start = time.monotonic()
        try:
            if self.lost:
                raise NotRun("the device no longer answers")
            if self.left < 5:
                raise NotRun("no time left")
            outcome, detail = "passed", work()
        except (NotRun, ModuleNotFoundError) as reason:
            outcome, detail = "not run", str(reason)
        except Exception as error:  # one stage that fails must not cost the others
            outcome, detail = "FAILED", f"{type(error).__name__}: {error}"[-2000:]
            self.lost = not self.device.alive()
        self.ran.append(name)
        seconds = round(time.monotonic() - start, 1)
        self.report["stages"][name] = {"outcome": outcome, "detail": detail, "seconds": seconds}
        print(f"{outcome:8} {name} ({seconds} s): {detail}", flush=True)
        self.save()

    def save(self) -> None:
        """Writes what there is so far."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.report, indent=1) + "\n", "utf-8")

    @property
    def failed(self) -> list[str]:
        """Names of the stages of this run that failed."""
        return [name for name in self.ran if self.report["stages"][name]["outcome"] == "FAILED"]


def environment(device) -> dict:
    """Versions and the device; no names of machines."""
    import torch

    packages = {name: _version(name) for name in ("torch", *NEEDED, *PEERS)}
    found = {"python": sys.version.split()[0], "cuda": torch.version.cuda or "none", **packages}
    if device.real:
        properties = torch.cuda.get_device_properties(0)
        found |= {"device": properties.name, "multiprocessors": properties.multi_processor_count}
        found |= {"memory": properties.total_memory, "l2": properties.L2_cache_size}
    return found


def kernels(run: Run) -> str:
    """Compiles the C++ kernels, and the CUDA ones for this GPU, at once."""
    from concurrent.futures import ThreadPoolExecutor

    import torch

    from adapt_kernels.native import kernels

    devices = [torch.device(name) for name in {run.device.name, "cpu"}]
    with ThreadPoolExecutor() as pool:
        list(pool.map(kernels.load, devices))
    return "compiled or found in the cache: " + ", ".join(sorted(device.type for device in devices))


def figures(run: Run) -> str:
    """Times every case; those after the deadline are recorded as not run."""
    import pytest
    import torch
    from credit_peers import NotHere
    from gpu_device import Clock, bandwidth
    from gpu_matrix import cases

    clock = Clock(run.device)
    speed = run.report["bytes_per_second"] = bandwidth(run.device, clock)
    reserve, failures = run.device.pick(100, 0), []  # seconds for generate and the tests
    for name, peer, moved, make in cases(run.device):
        key = f"{name}-{peer}"
        if run.left < reserve:
            run.report["cases"][key] = {"not run": "no time left"}
            continue
        try:
            seconds = clock.seconds(make())
            share = {"bytes": moved, "share": moved / seconds["warm"] / speed} if moved else {}
            run.report["cases"][key] = seconds | share
            if run.device.real:
                torch.cuda.empty_cache()
        except (NotHere, pytest.skip.Exception) as reason:
            run.report["cases"][key] = {"not run": str(reason)}
        except Exception as error:  # a peer's failure is its own
            run.report["cases"][key] = {"not run": f"{type(error).__name__}: {error}"[:300]}
            failures += [key] if peer.startswith("adapt_kernels") else []
            assert run.device.alive(), f"the device no longer answers after {key}: {error}"
    assert not failures, failures
    return f"{sum('warm' in case for case in run.report['cases'].values())} of {len(run.report['cases'])} cases"


def generate(run: Run) -> str:
    """Times whole `generate` calls, in a process of their own; what was measured before one that hangs is kept."""
    from gpu_device import NotRun

    # A call of 400 tokens takes half a minute where the host is slow, and the tests need their time.
    seconds, grace = run.left - run.device.pick(300, 0), 60
    if seconds < 20:
        raise NotRun("no time left")
    with TemporaryDirectory() as folder:
        out = Path(folder, "generate.json")
        command = [sys.executable, Path(__file__).with_name("gpu_generate.py"), "--device", run.device.name]
        command += ["--seconds", str(seconds), "--out", out, *(["--tiny"] if run.device.tiny else [])]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + grace)
            ended = f"exit status {done.returncode}: {done.stderr[-1500:]}" if done.returncode else ""
        except subprocess.TimeoutExpired:
            ended = f"stopped {grace} s after its last call should have ended"
        found = json.loads(out.read_text("utf-8")) if out.exists() else {}
    run.report["cases"] |= found
    assert not ended, f"{ended}; {len(found)} cases begun"
    ours = [case["not run"] for name, case in found.items() if name.endswith("-patched") and "not run" in case]
    assert all(reason == "no time left" for reason in ours), ours
    return f"{sum('seconds' in case for case in found.values())} of {len(found)} cases"


def tests(name: str, run: Run) -> str:
    """One part of the suite with the tensors on the device; in a dry run only which of one file's tests those are."""
    from gpu_device import NotRun

    if find_spec("pytest") is None:
        raise NotRun("pytest is not installed")
    arguments, most = TESTS[name]
    if not run.device.real:
        # One file's: the others take seconds to collect, on one core.
        arguments = [arguments[-1] if arguments[-1].endswith(".py") else "tests/ops/test_policy_loss.py"]
        arguments.append("--collect-only")
    workers = ["-n", "12"] if run.device.real and find_spec("xdist") else []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not full", *workers, *arguments]
    folders = [ROOT, ROOT / "python", ROOT / "tests/ops", os.environ.get("PYTHONPATH", "")]
    return _last_line(
        run, command, most, {"FUZZ_DEVICE": run.device.name, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    )


def sanitizer(tool: str, run: Run) -> str:
    """The checks with tiny sizes under compute-sanitizer."""
    from gpu_device import NotRun

    if not run.device.real:
        raise NotRun("no GPU")
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).exists():
        raise NotRun("compute-sanitizer is not installed")
    command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, __file__, "--watched"]
    return _last_line(run, command, 70)


def _last_line(run: Run, command, most: float, variables=()) -> str:
    from gpu_device import NotRun

    seconds = min(most, run.left)
    environment = {**os.environ, **dict(variables)}
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, env=environment)
    except subprocess.TimeoutExpired:
        raise NotRun(f"not finished after {seconds:.0f} s") from None
    output = done.stdout.strip() + "\n" + done.stderr.strip()
    assert done.returncode == 0, f"exit status {done.returncode}\n{output[-1800:]}"
    return output.strip().splitlines()[-1]


def _version(name) -> str:
    with suppress(PackageNotFoundError):
        return version(name)
    return "not installed"


def main(arguments=None) -> int:
    """Exit status: 0, or 1 where a stage failed or there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="every stage with tiny sizes on a CPU")
    parser.add_argument(
        "--watched", action="store_true", help="only the checks, with tiny sizes, for compute-sanitizer"
    )
    parser.add_argument("--part", choices=["all", "checks", "figures"], default="all")
    parser.add_argument("--out", help="folder of the results (default: benchmarks/results)")
    parser.add_argument("--seconds", type=float, default=560, help="time for all of it (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton
    import torch

    if not options.dry_run and not torch.cuda.is_available():
        print(
            f"make gpu needs an NVIDIA GPU and a PyTorch built for CUDA; torch {torch.__version__} finds none here. "
            "`make gpu ARGS=--dry-run` runs every stage with tiny sizes on the CPU.",
            file=sys.stderr,
        )
        return 1
    run = Run(options)
    missing = [f"{name} (for {use})" for name, use in NEEDED.items() if _version(name) == "not installed"]
    print(f"missing: {', '.join(missing) or 'nothing'}; peers missing: " + _missing_peers())
    stages(run, options.watched, options.part)
    if run.path is not None:
        print(f"results: {run.path}")
    return 1 if run.failed else 0


def stages(run: Run, watched: bool, part: str) -> None:
    """All stages in order, or those of a part."""
    from functools import partial

    import gpu_checks

    run.stage("kernels", partial(kernels, run))
    for name, check in gpu_checks.CHECKS.items():
        if part != "figures" and (not watched or name in gpu_checks.WATCHED):
            run.stage(name, partial(check, run.device))
    if watched:
        return
    if part != "checks":
        run.stage("figures", partial(figures, run))
        run.stage("generate", partial(generate, run))
    if part != "figures":
        for name in TESTS:
            run.stage(name, partial(tests, name, run))
        for tool in ("memcheck", "racecheck"):
            run.stage(tool, partial(sanitizer, tool, run))


def _missing_peers() -> str:
    return ", ".join(name for name in PEERS if _version(name) == "not installed") or "none"


if __name__ == "__main__":
    sys.exit(main())
