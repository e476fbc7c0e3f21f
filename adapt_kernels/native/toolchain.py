"""What compiling needs: a C++ compiler, ninja, pybind11 and Python's headers; and the error for what is missing."""

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

from adapt_kernels import env

_COMPILERS = ("c++", "g++", "clang++")
PREBUILD = (
    "or compile on a machine of the same kind with `python -m adapt_kernels.build`, and point ADAPT_KERNELS_CACHE "
    "at a copy of its cache"
)


class NativeBuildError(RuntimeError):
    """The native backend cannot be built or loaded: what was wanted, where we looked, what still works, what helps."""

    def __init__(self, problem: str, wanted: str, looked: str, remedies: tuple[str, ...], output: str = ""):
        self.problem, self.wanted, self.looked = problem, wanted, looked
        self.remedies, self.output = remedies, output
        lines = [
            f"the native backend is not available: {problem}",
            f"  wanted: {wanted}",
            f"  looked: {looked}",
            "  still works: backend='reference' (plain PyTorch, slower)",
            "  remedies, in this order:",
            *(f"    {number}. {remedy}" for number, remedy in enumerate(remedies, 1)),
        ]
        super().__init__("\n".join(lines) + (f"\n  compiler output:\n{output[-6000:]}" if output else ""))

    @property
    def reason(self) -> str:
        """Problem and remedies in one line."""
        return f"{self.problem}; remedy: {'; '.join(self.remedies)}"


class Toolchain(NamedTuple):
    """Everything found."""

    compiler: tuple[str, ...]
    ninja: str
    includes: tuple[str, ...]


def find_toolchain() -> Toolchain:
    """Looks, runs nothing. Raises NativeBuildError for the first thing missing."""
    if sys.platform != "linux":
        raise NativeBuildError(
            f"it is built on Linux only, not on {sys.platform}",
            "Linux",
            "sys.platform",
            ("use backend='reference'",),
        )
    return Toolchain(_find_compiler(), _find_ninja(), (_find_pybind11(), _find_python_headers()))


def describe_tools(toolchain: Toolchain) -> str:
    """Versions of compiler and pybind11: builds of another compiler must not be mistaken for this one's."""
    command = [*toolchain.compiler, "--version"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        failure = done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        failure = str(error)
    if failure:
        raise NativeBuildError(
            "the C++ compiler does not start",
            "a version from the compiler",
            shlex.join(command),
            ("set CXX to a working C++17 compiler", _install("g++", "gxx")),
            failure,
        )
    # Reading the header that holds pybind11's version is ten times faster than asking for the version.
    pybind11 = Path(toolchain.includes[0], "pybind11/detail/common.h").read_text("utf-8")
    return "\n".join([done.stdout, *toolchain.compiler[1:], pybind11])


def describe_cpu() -> str:
    """Model and instruction sets of this CPU: code for -march=native runs on no other."""
    wanted = ("vendor_id", "model name", "flags", "CPU implementer", "CPU part", "Features")
    lines = [platform.machine()]
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as blocks:
            # The first core's block only: the file is slow to read on machines with hundreds of cores.
            for line in iter(blocks.readline, "\n"):
                if not line:
                    break
                if line.split(":")[0].strip() in wanted:
                    lines.append(line.strip())
    except OSError:
        lines.append(platform.processor())
    return "\n".join(lines)


def _find_compiler() -> tuple[str, ...]:
    chosen = env.get("CXX")
    for name in (chosen,) if chosen else _COMPILERS:
        words = shlex.split(name)
        path = shutil.which(words[0]) if words else None
        if path:
            return (path, *words[1:])
    looked = f"CXX={chosen}" if chosen else f"{', '.join(_COMPILERS)} (CXX is not set)"
    raise NativeBuildError(
        f"CXX={chosen} is not a command" if chosen else "no C++ compiler",
        "a C++17 compiler with OpenMP",
        f"{looked} on PATH={os.environ.get('PATH')}",
        (_install("g++", "gxx"), "set CXX to a C++17 compiler", PREBUILD),
    )


def _find_ninja() -> str:
    # A virtual environment that was not activated has its bin folder off PATH.
    folders = [str(Path(sys.executable).parent), sysconfig.get_path("scripts")]
    folders.append(sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user")))
    path = shutil.which("ninja") or shutil.which("ninja", path=os.pathsep.join(folders))
    if path:
        return path
    raise NativeBuildError(
        "no ninja",
        "the build tool ninja",
        f"PATH={os.environ.get('PATH')} and {', '.join(dict.fromkeys(folders))}",
        ("pip install ninja", "apt-get install ninja-build", PREBUILD),
    )


def _find_pybind11() -> str:
    spec = importlib.util.find_spec("pybind11")
    if spec is None or not spec.submodule_search_locations:
        raise NativeBuildError(
            "no pybind11", "the Python package pybind11", "the import path", ("pip install pybind11", PREBUILD)
        )
    # Where pip puts them; distributions put them among the system's headers.
    folders = [Path(spec.submodule_search_locations[0]) / "include", Path("/usr/include")]
    for folder in folders:
        if (folder / "pybind11/detail/common.h").is_file():
            return str(folder)
    raise NativeBuildError(
        "no pybind11 headers", "pybind11/pybind11.h", ", ".join(map(str, folders)), ("pip install pybind11", PREBUILD)
    )


def _find_python_headers() -> str:
    folder = sysconfig.get_path("include")
    if not Path(folder, "Python.h").is_file():
        raise NativeBuildError(
            "no Python headers", "Python.h", folder, (_install("python3-dev", f"python={platform.python_version()}"),)
        )
    return folder


def _install(debian: str, conda: str) -> str:
    return f"apt-get install {debian} (with conda: conda install -c conda-forge {conda})"
