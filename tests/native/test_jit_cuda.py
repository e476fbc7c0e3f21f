"""nvcc is found or missed by name, and the CUDA extension is compiled, cached and imported without a GPU."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adapt_kernels.native import jit, jit_cuda, toolchain, toolchain_cuda
from adapt_kernels.native.toolchain import NativeBuildError

ROOT = Path(__file__).resolve().parents[2]
BINDINGS = """
#include <Python.h>
int status();
static PyObject* answer(PyObject*, PyObject*) { return PyLong_FromLong(42 + 0 * status()); }
static PyMethodDef methods[] = {{"answer", answer, METH_NOARGS, nullptr}, {}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "stand_in", nullptr, -1, methods};
PyMODINIT_FUNC PyInit_stand_in() { return PyModule_Create(&module); }
"""
KERNEL = """
__global__ void fill(int* x) { x[threadIdx.x] = 7; }
int status() { fill<<<1, 1>>>(nullptr); return cudaGetLastError(); }
"""
try:
    toolchain_cuda.find_cuda_toolchain()
    needs_nvcc = pytest.mark.skipif(False, reason="")
except NativeBuildError as missing:
    needs_nvcc = pytest.mark.skipif(True, reason=missing.reason)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAPT_KERNELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(jit_cuda, "_outcomes", {})
    return tmp_path / "cache"


@pytest.fixture
def extension(tmp_path):
    folder = tmp_path / "a b:c" / "csrc"  # nvcc itself cannot take a $
    (folder / "cuda").mkdir(parents=True)
    (folder / "include/adapt").mkdir(parents=True)
    (folder / "cuda/bindings.cpp").write_text(BINDINGS)
    (folder / "cuda/fill.cu").write_text(KERNEL)
    return jit_cuda.CudaExtension("stand_in", folder, "sm_90")


def fake_nvcc(folder, text):
    path = folder / "bin/nvcc"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_cuda_home_goes_before_the_path(tmp_path, monkeypatch):
    home, on_path, default = (fake_nvcc(tmp_path / name, "exit 3") for name in ("home", "path", "default"))
    monkeypatch.setattr(toolchain_cuda, "_DEFAULT_HOME", tmp_path / "default")
    monkeypatch.setenv("PATH", str(tmp_path / "path/bin"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert toolchain_cuda.find_nvcc() == home
    monkeypatch.delenv("CUDA_HOME")
    assert toolchain_cuda.find_nvcc() == on_path
    monkeypatch.setenv("PATH", str(tmp_path))
    assert toolchain_cuda.find_nvcc() == default
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nothing"))
    with pytest.raises(NativeBuildError, match=r"no CUDA compiler \(nvcc\)") as error:
        toolchain_cuda.find_nvcc()
    for text in (f"CUDA_HOME={tmp_path}/nothing", "install NVIDIA's CUDA toolkit", "backend='reference'"):
        assert text in str(error.value)


def test_an_nvcc_that_does_not_start(tmp_path):
    path = fake_nvcc(tmp_path, "echo broken install >&2; exit 3")
    with pytest.raises(NativeBuildError, match="nvcc does not start") as error:
        toolchain_cuda.describe_cuda_tools(toolchain_cuda.CudaToolchain(path, None))
    assert "broken install" in str(error.value)


@pytest.mark.parametrize("name", ["90", "sm_9", "compute_90", "sm_90;ls", ""])
def test_an_architecture_is_named_as_nvcc_does(name):
    with pytest.raises(ValueError, match="like 'sm_90'"):
        jit_cuda.cuda_extension(name)


def test_build_command_refuses_an_architecture_before_it_builds(cache):
    command = [sys.executable, "-m", "adapt_kernels.build", "--cuda", "sm_90", "hopper"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "") and "got 'hopper'" in done.stderr
    assert not cache.exists()


@needs_nvcc
def test_compiled_cached_and_imported(extension, cache, monkeypatch, tmp_path):
    built = jit.build(extension)
    assert built.seconds > 0 and built.path.is_relative_to(cache / jit.__version__)
    assert jit.import_built(extension, built.path).answer() == 42
    assert jit.build(extension) == jit.Build(built.path, 0.0)
    assert sorted(path.name for path in built.path.parent.iterdir()) == ["lock", "stand_in.so"]
    # Prebuilt, it needs no tools, and none of this CPU's features.
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nothing"))
    monkeypatch.setattr(jit, "describe_cpu", lambda: "another")
    assert jit.build(extension) == jit.Build(built.path, 0.0)
    with pytest.raises(NativeBuildError, match="no CUDA compiler"):
        jit.build(extension._replace(architecture="sm_80"))


@needs_nvcc
def test_every_input_is_in_the_key(extension, monkeypatch):
    tools = toolchain_cuda.find_cuda_toolchain()
    paths = [jit.target_path(extension, tools), jit.target_path(extension._replace(architecture="sm_80"), tools)]
    for file in ("cuda/fill.cu", "cuda/bindings.cpp", "cuda/row.cuh", "include/adapt/rows.h"):
        with open(extension.folder / file, "a") as source:
            source.write("// changed\n")
        paths.append(jit.target_path(extension, tools))
    for name in ("HOST_FLAGS", "NVCC_FLAGS", "LINK_FLAGS"):
        monkeypatch.setattr(jit_cuda, name, (*getattr(jit_cuda, name), "-g"))
        paths.append(jit.target_path(extension, tools))
    monkeypatch.setattr(jit_cuda, "describe_cuda_tools", lambda _: "another")
    paths.append(jit.target_path(extension, tools))
    assert len(set(paths)) == len(paths) == 10


@needs_nvcc
def test_what_nvcc_refuses_is_attached_and_not_tried_again(extension, monkeypatch):
    (extension.folder / "cuda/fill.cu").write_text("int status() { return no_such_name; }\n")
    monkeypatch.setattr(jit_cuda, "cuda_extension", lambda architecture: extension)
    with pytest.raises(NativeBuildError, match="do not compile for sm_90") as error:
        jit_cuda.load("sm_90")
    assert "no_such_name" in error.value.output
    monkeypatch.setattr(jit, "build", None)
    with pytest.raises(NativeBuildError, match="no_such_name"):
        jit_cuda.load("sm_90")


def test_host_compiler_of_several_words_is_left_to_nvcc(extension):
    def lines(*compiler):
        return extension.ninja_file(toolchain_cuda.CudaToolchain("/nvcc", toolchain.Toolchain(compiler, "", ("/inc",))))

    assert lines("/usr/bin/g++").count("/nvcc -ccbin /usr/bin/g++ ") == 2
    text = lines("/usr/bin/ccache", "g++")
    assert "-ccbin" not in text and "command = /usr/bin/ccache g++ -std=c++17" in text
    assert "-gencode arch=compute_90,code=sm_90" in text


@needs_nvcc
@pytest.mark.full
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100", "sm_120"])
def test_the_real_extension_compiles_and_imports(architecture):
    module = jit_cuda.load(architecture)
    assert jit_cuda.load(architecture) is module
    assert module.token_logprobs_workspace(3, 8193) == 3 * 2 * 12
    assert "int" in module.policy_loss_cuda.__doc__
    if not torch.cuda.is_available():
        # No rows, no launch; anything else is refused by a runtime that finds no GPU.
        numbers = [0, 0, 0, 1, 5, 0, 0, 0, 0, 1.0, 0, 0, 0, 0, 1]
        assert module.token_logprobs_cuda(*numbers, 0, 0) == 0
        numbers[2] = 1
        assert module.token_logprobs_cuda(*numbers, 0, 0) == 2
