"""The compile-and-cache logic, on a module of two functions that compiles in a second."""

import logging
import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from adapt_kernels.native import jit, toolchain
from adapt_kernels.native.jit import NativeBuildError

ROOT = Path(__file__).resolve().parents[2]
BINDINGS = """
#include <Python.h>
#include "stand_in.h"
int seven();
static PyObject* answer(PyObject*, PyObject*) { return PyLong_FromLong(SIX * seven()); }
static PyMethodDef methods[] = {{"answer", answer, METH_NOARGS, nullptr}, {}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "stand_in", nullptr, -1, methods};
PyMODINIT_FUNC PyInit_stand_in() { return PyModule_Create(&module); }
"""
BUILD = "import sys; from pathlib import Path; from adapt_kernels.native import jit; " + (
    "e = jit.Extension('stand_in', Path(sys.argv[1])); b = jit.build(e); "
    "print(jit.import_built(e, b.path).answer(), b.seconds > 0)"
)

try:
    toolchain.find_toolchain()
    needs_tools = pytest.mark.skipif(False, reason="")
except NativeBuildError as missing:
    needs_tools = pytest.mark.skipif(True, reason=missing.reason)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and no outcome remembered from another test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("ADAPT_KERNELS_CACHE", str(folder))
    monkeypatch.setattr(jit, "_outcome", None)
    return folder


@pytest.fixture
def extension(tmp_path):
    # Characters that ninja and the shell would take for their own.
    folder = tmp_path / "a b$c:d" / "csrc"
    (folder / "cpu").mkdir(parents=True)
    (folder / "include").mkdir()
    (folder / "bindings.cpp").write_text(BINDINGS)
    (folder / "cpu/seven.cpp").write_text("int seven() { return 7; }\n")
    (folder / "include/stand_in.h").write_text("#define SIX 6\n")
    return jit.Extension("stand_in", folder)


@pytest.fixture
def slow_compiler(tmp_path, monkeypatch):
    """A compiler that logs each run and waits for a file before it compiles."""
    go, log = tmp_path / "go", tmp_path / "log"
    script = tmp_path / "slow_c++"
    real = toolchain.find_toolchain().compiler[0]
    script.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exec {real} --version\n'
        f'echo run >> {log}\nwhile [ ! -e {go} ]; do sleep 0.05; done\nexec {real} "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    return go, log


def start(extension):
    """Builds the stand-in in a process of its own; ninja and compiler are in its process group."""
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(extension.folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(path):
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


def tree(folder):
    return {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


@needs_tools
def test_compiles_once_and_then_only_reads(extension, cache, caplog):
    caplog.set_level(logging.INFO, "adapt_kernels")
    assert not cache.exists()
    built = jit.build(extension)
    assert built.seconds > 0 and built.path.is_relative_to(cache / jit.__version__)
    assert jit.import_built(extension, built.path).answer() == 42
    assert [r.message.split(",")[0] for r in caplog.records[:1]] == ["compiling once"]
    assert str(built.path.parent) in caplog.text
    folders = [cache, *(p for p in cache.rglob("*") if p.is_dir())]
    assert {stat.S_IMODE(p.stat().st_mode) for p in folders} == {0o700} and len(folders) == 3
    assert sorted(p.name for p in built.path.parent.iterdir()) == ["lock", "stand_in.so"]
    before = tree(cache)
    assert jit.build(extension) == jit.Build(built.path, 0.0)
    assert tree(cache) == before, "a hit writes, so it would fail in a read-only cache"


@needs_tools
def test_a_changed_header_compiles_again(extension):
    first = jit.build(extension)
    (extension.folder / "include/stand_in.h").write_text("#define SIX 60\n")
    second = jit.build(extension)
    assert first.path != second.path and second.seconds > 0
    assert jit.import_built(extension, second.path).answer() == 420


@needs_tools
def test_every_input_is_in_the_key(extension, monkeypatch):
    found = toolchain.find_toolchain()
    paths = [jit.target_path(extension, found)]

    def another():
        paths.append(jit.target_path(extension, found))

    (extension.folder / "cpu/seven.cpp").write_text("int seven() { return 8; }\n")
    another()
    (extension.folder / "cpu/seven.cpp").rename(extension.folder / "cpu/eight.cpp")
    another()
    (extension.folder / "cpu/row.h").touch()
    another()
    for name in ("COMPILE_FLAGS", "BINDINGS_FLAGS", "LINK_FLAGS"):
        monkeypatch.setattr(jit, name, (*getattr(jit, name), "-g"))
        another()
    for name in ("describe_cpu", "describe_tools"):
        monkeypatch.setattr(jit, name, lambda *_: "another")
        another()
    monkeypatch.setattr(jit.sysconfig, "get_config_var", lambda _: "cpython-399")
    another()
    monkeypatch.setattr(jit, "__version__", "9.9")
    another()
    assert len(set(paths)) == len(paths)


@needs_tools
def test_two_processes_compile_once(extension, slow_compiler):
    go, log = slow_compiler
    workers = [start(extension), start(extension)]
    wait_for(log)
    time.sleep(0.5)
    go.touch()
    done = [worker.communicate(timeout=120) for worker in workers]
    assert sorted(out for out, _ in done) == ["42 False\n", "42 True\n"], done
    assert len(log.read_text().splitlines()) == 3, "two sources and one link"


@needs_tools
def test_a_killed_compile_leaves_nothing_broken(extension, slow_compiler, cache):
    go, log = slow_compiler
    worker = start(extension)
    try:
        wait_for(log)
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait(timeout=60)
        (left,) = cache.glob("*/*/build-*")
        assert jit.find_built(extension) is None
        # The orphaned compiler is still at work in its folder; it must not matter.
        go.touch()
        built = jit.build(extension)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.communicate()
    assert jit.import_built(extension, built.path).answer() == 42
    assert not left.exists() and not list(cache.glob("*/*/build-*"))


@needs_tools
def test_compile_error_is_attached_and_not_tried_again(extension, monkeypatch, cache):
    (extension.folder / "cpu/seven.cpp").write_text("int seven() { return six_and_one; }\n")
    monkeypatch.setattr(jit, "native_extension", lambda: extension)
    assert jit.unavailable_reason() is None
    with pytest.raises(NativeBuildError, match="six_and_one") as first:
        jit.load()
    assert "six_and_one" in first.value.output
    assert "do not compile" in jit.unavailable_reason() and "CXX" in jit.unavailable_reason()
    assert not list(cache.glob("*/*/build-*"))
    monkeypatch.setattr(jit, "build", None)
    with pytest.raises(NativeBuildError, match="six_and_one"):
        jit.load()


@needs_tools
def test_sources_edited_during_the_compile_are_not_cached(extension, slow_compiler, cache):
    go, log = slow_compiler
    worker = start(extension)
    wait_for(log)
    (extension.folder / "include/stand_in.h").write_text("#define SIX 60\n")
    go.touch()
    _, errors = worker.communicate(timeout=120)
    assert worker.returncode == 1 and "sources changed while they were compiled" in errors
    assert not list(cache.rglob("*.so"))


@needs_tools
def test_missing_symbol_says_what_to_delete(extension):
    (extension.folder / "cpu/seven.cpp").unlink()
    built = jit.build(extension)
    with pytest.raises(NativeBuildError, match="does not load.*seven") as error:
        jit.import_built(extension, built.path)
    assert f"delete {built.path.parent}" in str(error.value)


@needs_tools
def test_load_gives_the_module_and_remembers_it(extension, monkeypatch):
    monkeypatch.setattr(jit, "native_extension", lambda: extension)
    module = jit.load()
    assert module.answer() == 42
    assert jit.load() is module


@needs_tools
def test_a_prebuilt_module_needs_no_tools(extension, monkeypatch, tmp_path):
    built = jit.build(extension)
    monkeypatch.setattr(jit, "native_extension", lambda: extension)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert jit.unavailable_reason() is None
    assert jit.build(extension) == jit.Build(built.path, 0.0)
    (extension.folder / "include/stand_in.h").write_text("#define SIX 1\n")
    assert "no C++ compiler" in jit.unavailable_reason()
    with pytest.raises(NativeBuildError, match="no C\\+\\+ compiler"):
        jit.load()


@needs_tools
@pytest.mark.parametrize(("inside", "fault"), [("file/cache", "Not a directory"), (300 * "x", "File name too long")])
def test_cache_that_cannot_be_used(extension, monkeypatch, tmp_path, inside, fault):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ADAPT_KERNELS_CACHE", str(tmp_path / inside))
    with pytest.raises(NativeBuildError, match=f"cannot be used.*{fault}") as error:
        jit.build(extension)
    assert "set ADAPT_KERNELS_CACHE" in str(error.value)


@needs_tools
def test_unavailable_reason_runs_nothing(monkeypatch, cache):
    def refuse(*_, **__):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert jit.unavailable_reason() is None
    assert not cache.exists()


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("fault", ["mode", "owner"])
@needs_tools
def test_refuses_a_cache_others_can_write_to(extension, cache, monkeypatch, level, fault):
    target = jit.target_path(extension, toolchain.find_toolchain())
    jit.make_private(target.parent)
    target.write_bytes(b"not ours")
    folder = (cache, target.parents[1], target.parent)[level]
    if fault == "mode":
        folder.chmod(0o777)
    elif os.geteuid() == 0:
        os.chown(folder, 54321, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 54321)
    expected = "writable by everyone" if fault == "mode" else "belongs to another user"
    with pytest.raises(NativeBuildError, match=expected) as error:
        jit.build(extension)
    assert "set ADAPT_KERNELS_CACHE" in str(error.value)
    if level == 0:
        assert expected in jit.unavailable_reason()
