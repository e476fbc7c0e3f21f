"""Compiles `csrc/` on first use and keeps the result in the user's cache. Importing this module does nothing."""

import hashlib
import importlib.machinery
import importlib.util
import logging
import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from adapt_kernels.native.build_cache import cache_folder, explained, locked, make_private, refuse_untrusted
from adapt_kernels.native.toolchain import (
    NativeBuildError,
    Toolchain,
    describe_cpu,
    describe_tools,
    find_toolchain,
)
from adapt_kernels.version import __version__

COMPILE_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-fopenmp", "-fvisibility=hidden")
# No kernel is in there, and pybind11 takes a third longer at -O3.
BINDINGS_FLAGS = ("-O1",)
LINK_FLAGS = ("-shared", "-fopenmp")
_log = logging.getLogger("adapt_kernels")
_loading = threading.Lock()
_outcome: ModuleType | NativeBuildError | None = None


class Extension(NamedTuple):
    """A Python extension module in C++: `bindings.cpp`, `cpu/*.cpp` and the headers of one folder."""

    name: str
    folder: Path
    architecture: str = ""  # of the GPU, where there is GPU code in it

    @property
    def expected_seconds(self) -> int:
        return 15

    def sources(self) -> list[Path]:
        """What is compiled, one object each."""
        return [self.folder / "bindings.cpp", *sorted(self.folder.glob("cpu/*.cpp"))]

    def inputs(self) -> list[Path]:
        """What the result depends on."""
        return sorted([*self.sources(), *self.folder.rglob("*.h")])

    def key_words(self) -> tuple[str, ...]:
        """What else the machine code depends on, but for the tools."""
        flags = (*COMPILE_FLAGS, *BINDINGS_FLAGS, *LINK_FLAGS)
        return (self.name, *flags, str(sysconfig.get_config_var("SOABI")), describe_cpu())

    def find_tools(self) -> Any:
        """What compiles it; has `ninja`. Raises NativeBuildError."""
        return find_toolchain()

    def describe_tools(self, tools: Any) -> str:
        """Versions of the tools. Raises NativeBuildError."""
        return describe_tools(tools)

    def ninja_file(self, tools: Any) -> str:
        """The build description ninja runs."""
        includes = [f"-I{self.folder / 'include'}", *(f"-isystem{folder}" for folder in tools.includes)]
        lines = [
            "ninja_required_version = 1.3",
            "rule compile",
            f"  command = {command([*tools.compiler, *COMPILE_FLAGS, *includes])} $extra -c $in -o $out",
            "rule link",
            f"  command = {command(tools.compiler)} $in {command(LINK_FLAGS)} -o $out",
        ]
        objects = []
        for source in self.sources():
            objects.append(f"{source.stem}.o")
            lines.append(f"build {objects[-1]}: compile {ninja_path(source)}")
            if source.stem == "bindings":
                lines.append(f"  extra = {command(BINDINGS_FLAGS)}")
        lines.append(f"build {self.name}.so: link {' '.join(objects)}")
        return "\n".join(lines) + "\n"

    def compile_error(self, tools: Any, output: str) -> NativeBuildError:
        """The error for sources that the compiler refused."""
        return NativeBuildError(
            "the C++ sources do not compile",
            "C++17 with OpenMP",
            shlex.join(tools.compiler),
            (
                "set CXX to g++ 9 or newer, or clang++ 12 or newer",
                "call with backend='native' to see the compiler's output",
            ),
            output,
        )


class Build(NamedTuple):
    """A compiled extension: where it is, and how long it took (0 from the cache)."""

    path: Path
    seconds: float


def native_extension() -> Extension:
    """The engine's own extension; its sources are in the package (wheel) or beside it (checkout, editable)."""
    package = Path(__file__).resolve().parents[1]
    folders = (package / "csrc", package.parent / "csrc")
    for folder in folders:
        if (folder / "bindings.cpp").is_file():
            return Extension("adapt_native", folder)
    raise NativeBuildError(
        "the C++ sources are missing",
        "csrc/bindings.cpp",
        ", ".join(map(str, folders)),
        ("pip install --force-reinstall adapt_kernels",),
    )


def unavailable_reason() -> str | None:
    """None if `load` should succeed, else the reason. Compiles nothing and runs nothing."""
    if _outcome is not None:
        return getattr(_outcome, "reason", None)
    try:
        refuse_untrusted(_version_folder())
        if not _prebuilt(native_extension()):
            find_toolchain()
    except NativeBuildError as error:
        return error.reason
    return None


def load() -> ModuleType:
    """The native extension; compiled by the first process that asks. Raises NativeBuildError."""
    global _outcome
    if isinstance(_outcome, ModuleType):
        return _outcome
    with _loading:
        if _outcome is None:
            try:
                extension = native_extension()
                _outcome = import_built(extension, build(extension).path)
            except NativeBuildError as error:
                # Sources that do not compile would take as long again; a missing tool may be there next time.
                if not error.output:
                    raise
                _outcome = error
    if isinstance(_outcome, NativeBuildError):
        raise _outcome.with_traceback(None)
    return _outcome


def import_built(extension: Extension, path: Path) -> ModuleType:
    """The compiled file as a module."""
    loader = importlib.machinery.ExtensionFileLoader(extension.name, str(path))
    try:
        spec = importlib.util.spec_from_loader(extension.name, loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    except ImportError as error:
        raise NativeBuildError(
            f"the compiled file does not load: {error}",
            f"the module {extension.name}",
            str(path),
            (f"delete {path.parent}: the next call compiles again", "set CXX to another compiler"),
        ) from error
    return module


@explained()
def build(extension: Extension) -> Build:
    """Compiles unless the cache has it. Processes that ask at the same time wait for the first."""
    found = find_built(extension)
    if found:
        return Build(found, 0.0)
    tools = extension.find_tools()
    target = target_path(extension, tools)
    make_private(target.parent)
    with locked(target.parent / "lock"):
        if target.is_file():
            return Build(target, 0.0)
        return _compile_into(target, extension, tools)


@explained()
def find_built(extension: Extension) -> Path | None:
    """The compiled file in the cache, if any. Without tools, any compiler's build of these sources will do."""
    refuse_untrusted(_version_folder())
    try:
        tools = extension.find_tools()
    except NativeBuildError:
        return _prebuilt(extension)
    target = target_path(extension, tools)
    refuse_untrusted(target.parent)
    return target if target.is_file() else None


def target_path(extension: Extension, tools: Toolchain) -> Path:
    """Where the compiled file belongs: cache / version / key of sources, flags, Python, CPU or GPU, and tools."""
    versions = hashlib.sha256(extension.describe_tools(tools).encode()).hexdigest()[:16]
    return _version_folder() / f"{_source_key(extension)}-{versions}" / f"{extension.name}.so"


def _compile_into(target: Path, extension: Extension, tools: Toolchain) -> Build:
    # We hold the lock, so a folder that is already here was left by a process that was killed.
    for left in target.parent.glob("build-*"):
        shutil.rmtree(left, ignore_errors=True)
    _log.info("compiling once, about %d s, cached in %s", extension.expected_seconds, target.parent)
    start = time.perf_counter()
    folder = Path(tempfile.mkdtemp(prefix="build-", dir=target.parent))
    try:
        (folder / "build.ninja").write_text(extension.ninja_file(tools), "utf-8")
        _run_ninja(folder, extension, tools)
        _refuse_changed(extension, target)
        with open(folder / target.name, "rb") as compiled:
            os.fsync(compiled.fileno())
        os.replace(folder / target.name, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seconds = time.perf_counter() - start
    _log.info("compiled in %.1f s: %s", seconds, target)
    return Build(target, seconds)


def _run_ninja(folder: Path, extension: Extension, tools: Toolchain) -> None:
    done = subprocess.run(
        [tools.ninja, "-C", str(folder)],
        # The compiler's own temporary files go with the folder, also after a kill.
        env={**os.environ, "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode:
        raise extension.compile_error(tools, done.stdout)


def _refuse_changed(extension: Extension, target: Path) -> None:
    """What was compiled must be what the key says, also while someone edits the sources."""
    if not target.parent.name.startswith(_source_key(extension)):
        raise NativeBuildError(
            "the C++ sources changed while they were compiled",
            "the same sources before and after",
            str(extension.folder),
            ("try again",),
        )


def _prebuilt(extension: Extension) -> Path | None:
    found = sorted(_version_folder().glob(f"{_source_key(extension)}-*/{extension.name}.so"))
    for path in found[:1]:
        refuse_untrusted(path.parent)
    return found[0] if found else None


def _version_folder() -> Path:
    return cache_folder() / __version__


def _source_key(extension: Extension) -> str:
    """A hash of all that the machine code depends on, except the tools."""
    key = hashlib.sha256()
    for part in extension.key_words():
        key.update(f"{part}\0".encode())
    for path in extension.inputs():
        content = path.read_bytes()
        key.update(f"{path.relative_to(extension.folder)}\0{len(content)}\0".encode() + content)
    return key.hexdigest()[:16]


def command(words) -> str:
    """Words as a command line in a ninja file."""
    return " ".join(shlex.quote(str(word)).replace("$", "$$") for word in words)


def ninja_path(path: Path) -> str:
    """A path as an input in a ninja file."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
