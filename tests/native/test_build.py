"""The engine's own extension: compile time, cache, CMake, and how the native backend is chosen."""

import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import adapt_kernels as ak
from adapt_kernels import dispatch
from adapt_kernels.native import jit

ROOT = Path(__file__).resolve().parents[2]
MISSING = jit.unavailable_reason()
needs_native = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
needs_cmake = pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")


def run(code_or_args, **environment):
    """Runs code, or arguments of python, in a new process."""
    arguments = ["-c", code_or_args] if isinstance(code_or_args, str) else code_or_args
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


# One test: it compiles for real, and workers would each fill a fixture's cache.
@needs_native
def test_build_command_compiles_in_time_and_the_cache_is_fast(tmp_path):
    cache = {"ADAPT_KERNELS_CACHE": str(tmp_path / "cache")}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run(["-m", "adapt_kernels.build"], **cache)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    path, took = re.fullmatch(r"(\S+) \(compiled in ([\d.]+) s\)\n", done.stdout).groups()
    assert Path(path).is_relative_to(tmp_path / "cache") and Path(path).is_file() and float(took) > 0
    assert "compiling once, about" in done.stderr and str(Path(path).parent) in done.stderr
    # Process time: it does not grow with what else the machine does, and two cores halve it.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 40

    done = run(["-m", "adapt_kernels.build"], **cache)
    assert (done.returncode, done.stdout) == (0, f"{path} (already in the cache)\n")
    code = "import time; from adapt_kernels.native import jit; s = time.time(); jit.load(); print(time.time() - s)"
    times = [float(run(code, **cache).stdout) for _ in range(7)]
    assert min(times) < 0.1, times


def test_build_command_without_tools_fails_with_the_remedy(tmp_path):
    done = run(["-m", "adapt_kernels.build"], ADAPT_KERNELS_CACHE=str(tmp_path), PATH=str(tmp_path), CXX="")
    assert done.returncode == 1 and done.stdout == ""
    assert "no C++ compiler" in done.stderr and "apt-get install g++" in done.stderr


@needs_native
@needs_cmake
def test_cmake_compiles_the_same_sources_with_the_same_flags(tmp_path):
    subprocess.run(
        ["cmake", "-S", str(ROOT), "-B", str(tmp_path), f"-DPython_EXECUTABLE={sys.executable}"],
        check=True,
        capture_output=True,
    )
    extension, root = jit.native_extension(), ROOT / "csrc"
    found = {}
    for entry in json.loads((tmp_path / "compile_commands.json").read_text()):
        words = shlex.split(entry["command"])
        found[Path(entry["file"])] = words
    # The tree's, where an installed package is tested.
    assert sorted(p.relative_to(root) for p in found) == sorted(
        p.relative_to(extension.folder) for p in extension.sources()
    )
    for source, words in found.items():
        expected = [*jit.COMPILE_FLAGS, *(jit.BINDINGS_FLAGS if source.stem == "bindings" else ())]
        flags = [w for w in words if w.startswith(("-f", "-m", "-O", "-std", "-W", "-g", "-U"))]
        assert set(flags) == set(expected), source
        assert [w for w in words if w.startswith("-O")][-1] == [w for w in expected if w.startswith("-O")][-1]
        assert f"-I{root / 'include'}" in words


def test_cmake_starts_by_naming_the_authority():
    assert (
        (ROOT / "CMakeLists.txt")
        .read_text("utf-8")
        .startswith("# adapt_kernels/native/jit.py is the authoritative build.")
    )


@needs_native
@needs_cmake
@pytest.mark.full
def test_cmake_build_loads(tmp_path):
    configure = ["cmake", "-S", str(ROOT), "-B", str(tmp_path), f"-DPython_EXECUTABLE={sys.executable}"]
    subprocess.run(configure, check=True, capture_output=True)
    subprocess.run(["cmake", "--build", str(tmp_path), "--parallel", "2"], check=True, capture_output=True)
    assert jit.import_built(jit.native_extension(), tmp_path / "adapt_native.so").mode_sample_cpu


def test_kernels_include_neither_torch_nor_python():
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".h", ".cu", ".cuh")]
    assert sources
    for path in sources:
        text = path.read_text("utf-8")
        assert not re.search(r'#include\s*[<"](torch|ATen|c10)/', text), path
        if path.name != "bindings.cpp":
            assert not re.search(r'#include\s*[<"](pybind11/|Python\.h)', text), path


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["native", "auto"])
def test_every_argument_reaches_the_kernel(dtype, backend):
    """One call in which each row argument, the bias and the strides differ from row to row."""
    generator = torch.Generator().manual_seed(3)
    rows = 12

    def uniform():
        # Every second entry of a wider tensor: the kernel must not be given its address as it is.
        return torch.rand(2 * rows, generator=generator, dtype=torch.float64)[::2]

    logits = (4 * torch.randn(2, 6, 400, generator=generator)).to(dtype)[:, :, 3:303].transpose(0, 1)
    arguments = {
        "modes": [7, None, 90],
        "at_mode": uniform() < 0.5,
        "mode_bias": torch.randn(6, 2, 3, generator=generator),
        "temperature": 2 * uniform(),
        "top_k": (100 * uniform()).long(),
        "top_p": uniform(),
        "min_p": 0.1 * uniform(),
        "seeds": (2**62 * (uniform() - 0.5)).long(),
        "step": (1000 * uniform()).long(),
        "forced_tokens": (10 * uniform()).long() - 8,
    }
    arguments = {k: v.reshape(6, 2) if torch.is_tensor(v) and v.ndim == 1 else v for k, v in arguments.items()}
    for only_modes in (True, False):
        compare(logits, backend, only_modes=only_modes, **arguments)
    del arguments["mode_bias"]
    compare(logits, backend, fast_prob=uniform().clamp(0.01, 0.99).reshape(6, 2), **arguments)
    for seeds in (0, -5, 2**63, 2**64 - 1):
        compare(logits, backend, seeds=seeds, step=9, temperature=0.8, top_k=30, top_p=0.9, min_p=0.01)


def compare(logits, backend, **arguments):
    got = ak.mode_sample(logits, backend=backend, **arguments)
    wanted = ak.mode_sample(logits, backend="reference", **arguments)
    for name, value, expected in zip(got._fields, got, wanted, strict=True):
        # Log-probs are float64 in both until the last step, and about 10 here: one float32 ulp is 1e-6.
        torch.testing.assert_close(value, expected, rtol=0, atol=2e-6, msg=lambda m, name=name: f"{name}: {m}")


@needs_native
@pytest.mark.parametrize("shape", [(0, 5), (0, 3, 5), (3, 0, 5), (1, 1)])
def test_empty_and_tiny_batches(shape):
    out = ak.mode_sample(torch.zeros(shape), modes=None if shape[-1] == 1 else [1, 2], seeds=1, backend="native")
    assert out.tokens.shape == shape[:-1] and out.mode_probs.shape[:-1] == shape[:-1]


@needs_native
def test_float64_is_refused_by_name_and_served_by_auto(recwarn):
    logits = torch.randn(2, 50, dtype=torch.float64)
    with pytest.raises(ValueError, match="backend='native' takes float32, bfloat16 or float16.*reference"):
        ak.mode_sample(logits, backend="native")
    assert ak.mode_sample(logits, seeds=1).logprobs.dtype == torch.float64
    assert not recwarn


@needs_native
def test_other_devices_are_refused_by_name():
    with pytest.raises(ValueError, match="CPU tensors; got logits on meta"):
        dispatch.choose("mode_sample", "native", torch.zeros(2, 5, device="meta"))


def test_unknown_backend_and_no_tensor():
    with pytest.raises(ValueError, match="'fastest'.*'auto', 'reference', 'native', 'triton'"):
        ak.mode_sample(torch.zeros(2, 5), backend="fastest")
    for backend in ("auto", "native"):
        with pytest.raises(TypeError, match="logits must be"):
            ak.mode_sample([1.0, 2.0], backend=backend)


def test_a_backend_that_cannot_run_draws_no_seed(monkeypatch):
    monkeypatch.setattr(dispatch, "unavailable_reason", lambda _: "no such device")
    dispatch._runnable.cache_clear()
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="backend='triton' cannot run here: no such device"):
        ak.mode_sample(torch.zeros(2, 5), backend="triton")
    assert torch.equal(torch.get_rng_state(), state)


def test_backends_says_what_runs():
    found = ak.backends()
    assert list(found) == ["reference", "native", "triton"]
    assert found["reference"] is None and found["native"] == MISSING


FALLBACK = """
import warnings, torch, adapt_kernels as ak
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        s = ak.mode_sample(torch.zeros(2, 5), seeds=1)
print(len(caught), caught[0].filename == "<string>", caught[0].message)
print(torch.equal(s.tokens, ak.mode_sample(torch.zeros(2, 5), seeds=1, backend="reference").tokens))
print(ak.backends()["native"])
try:
    ak.mode_sample(torch.zeros(2, 5), backend="native")
except RuntimeError as error:
    print(type(error).__name__, error)
"""


@needs_native
def test_a_cache_that_cannot_be_written_falls_back_too(tmp_path):
    (tmp_path / "file").touch()
    done = run(FALLBACK, ADAPT_KERNELS_CACHE=str(tmp_path / "file/cache"))
    assert (done.returncode, done.stderr) == (0, "")
    warning, same, *_ = done.stdout.splitlines()
    assert "Not a directory" in warning and "set ADAPT_KERNELS_CACHE" in warning and same == "True"


def test_without_a_compiler_auto_warns_once_and_native_raises(tmp_path):
    done = run(FALLBACK, PATH=str(tmp_path), CXX="", ADAPT_KERNELS_CACHE=str(tmp_path / "cache"))
    assert (done.returncode, done.stderr) == (0, "")
    warning, same, reason, *error = done.stdout.splitlines()
    assert warning.startswith("1 True mode_sample falls back to backend='reference'")
    for text in (warning, reason):
        assert "no C++ compiler" in text and "apt-get install g++" in text
    assert same == "True"
    assert error[0].startswith("NativeBuildError the native backend is not available: no C++ compiler")
    assert not (tmp_path / "cache").exists()
