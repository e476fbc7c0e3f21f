"""What is missing is named, with where it was looked for and what to do."""

import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from adapt_kernels.native import build_cache, jit, toolchain
from adapt_kernels.native.toolchain import NativeBuildError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """An empty PATH, CXX not set; put(name) creates a command."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("ADAPT_KERNELS_CACHE", str(tmp_path / "cache"))
    # Another test of this process may have loaded the extension already.
    monkeypatch.setattr(jit, "_outcome", None)

    def put(name, text="#!/bin/sh\nexit 3\n"):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
        return str(folder / name)

    return put


def missing():
    with pytest.raises(NativeBuildError) as error:
        toolchain.find_toolchain()
    assert "backend='reference'" in str(error.value)
    assert jit.unavailable_reason() == error.value.reason and "\n" not in error.value.reason
    return str(error.value)


def test_no_compiler(bare, tmp_path):
    text = missing()
    assert "no C++ compiler" in text and f"PATH={tmp_path}/bin" in text
    for remedy in ("apt-get install g++", "CXX", "python -m adapt_kernels.build", "ADAPT_KERNELS_CACHE"):
        assert remedy in text
    assert text.index("apt-get") < text.index("set CXX") < text.index("ADAPT_KERNELS_CACHE")


def test_cxx_is_respected(bare, monkeypatch):
    bare("c++")
    path = bare("my++")
    monkeypatch.setenv("CXX", "my++ -m64 '-DX=a b'")
    assert toolchain._find_compiler() == (path, "-m64", "-DX=a b")
    monkeypatch.setenv("CXX", "no-such++")
    assert "CXX=no-such++ is not a command" in missing()
    monkeypatch.setenv("CXX", " ")
    assert "is not a command" in missing()


def test_a_compiler_that_does_not_start(bare):
    path = bare("c++", "#!/bin/sh\necho broken install >&2\nexit 3\n")
    with pytest.raises(NativeBuildError, match="does not start") as error:
        toolchain.describe_tools(toolchain.Toolchain((path,), "", ()))
    assert "broken install" in str(error.value)


def test_ninja_beside_python_is_found_off_the_path(bare, tmp_path, monkeypatch):
    bare("c++")
    beside = tmp_path / "venv/bin"
    beside.mkdir(parents=True)
    (beside / "ninja").write_text("#!/bin/sh\n")
    (beside / "ninja").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(beside / "python"))
    assert toolchain._find_ninja() == str(beside / "ninja")


def test_no_ninja(bare, tmp_path, monkeypatch):
    bare("c++")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(sysconfig, "get_path", lambda *_: str(tmp_path / "nothing"))
    text = missing()
    assert "no ninja" in text and "pip install ninja" in text and str(tmp_path / "nothing") in text


def test_no_pybind11(bare, monkeypatch):
    bare("c++")
    bare("ninja")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    text = missing()
    assert "no pybind11" in text and "pip install pybind11" in text


def test_no_python_headers(bare, tmp_path, monkeypatch):
    bare("c++")
    bare("ninja")
    monkeypatch.setattr(sysconfig, "get_path", lambda *_: str(tmp_path))
    text = missing()
    assert "Python.h" in text and "python3-dev" in text and str(tmp_path) in text


def test_another_system(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(NativeBuildError, match="on Linux only"):
        toolchain.find_toolchain()


def test_missing_sources(monkeypatch, tmp_path):
    monkeypatch.setattr(jit, "__file__", str(tmp_path / "adapt_kernels/native/jit.py"))
    with pytest.raises(NativeBuildError, match="sources are missing") as error:
        jit.native_extension()
    for text in (str(tmp_path / "adapt_kernels/csrc"), str(tmp_path / "csrc"), "pip install"):
        assert text in str(error.value)


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/someone")
    for name in ("ADAPT_KERNELS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert build_cache.cache_folder() == Path("/home/someone/.cache/adapt_kernels")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the specification says to ignore it
    assert build_cache.cache_folder() == Path("/home/someone/.cache/adapt_kernels")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert build_cache.cache_folder() == Path("/xdg/adapt_kernels")
    monkeypatch.setenv("ADAPT_KERNELS_CACHE", "~/mine")
    assert build_cache.cache_folder() == Path("/home/someone/mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADAPT_KERNELS_CACHE", "mine")
    assert build_cache.cache_folder() == tmp_path / "mine"


def test_cpu_description_has_the_instruction_sets():
    lines = toolchain.describe_cpu().splitlines()
    assert len(lines) == len({line.split(":")[0] for line in lines}) >= 2, "one core's block"
    assert any(line.startswith(("flags", "Features")) for line in lines)


def test_import_is_light():
    code = (
        "import sys, adapt_kernels.native.jit, adapt_kernels.env_report, adapt_kernels.build\n"
        "print(sorted({'torch', 'numpy', 'pybind11', 'ninja', 'triton'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
