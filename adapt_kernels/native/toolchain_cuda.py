"""What compiling for a GPU needs beside `toolchain`: nvcc; and the error where it is missing."""

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from adapt_kernels import env
from adapt_kernels.native.toolchain import NativeBuildError, Toolchain, describe_tools, find_toolchain

_DEFAULT_HOME = Path("/usr/local/cuda")
_PREBUILD = (
    "or compile on another machine with `python -m adapt_kernels.build --cuda sm_90` (this GPU's architecture), and "
    "point ADAPT_KERNELS_CACHE at a copy of its cache"
)
_REMEDIES = (
    "install NVIDIA's CUDA toolkit 12 or newer and put its nvcc on PATH "
    "(with conda: conda install -c nvidia cuda-nvcc cuda-cudart-dev)",
    "set CUDA_HOME to the toolkit's folder",
    _PREBUILD,
)


class CudaToolchain(NamedTuple):
    """nvcc, and the tools of the host's part."""

    nvcc: str
    host: Toolchain

    @property
    def ninja(self) -> str:
        """The command that runs the build."""
        return self.host.ninja


def find_cuda_toolchain() -> CudaToolchain:
    """Looks, runs nothing. Raises NativeBuildError for the first thing missing."""
    return CudaToolchain(find_nvcc(), find_toolchain())


def find_nvcc() -> str:
    """CUDA_HOME's nvcc if that is set, else PATH's, else that of /usr/local/cuda. Raises NativeBuildError."""
    chosen = env.get("CUDA_HOME")
    if chosen:
        looked, path = f"CUDA_HOME={chosen}", shutil.which("nvcc", path=str(Path(chosen, "bin")))
    else:
        looked = f"PATH and {_DEFAULT_HOME} (CUDA_HOME is not set)"
        path = shutil.which("nvcc") or shutil.which("nvcc", path=str(_DEFAULT_HOME / "bin"))
    if path:
        return path
    raise NativeBuildError("no CUDA compiler (nvcc)", "nvcc, version 12 or newer", looked, _REMEDIES)


def describe_cuda_tools(tools: CudaToolchain) -> str:
    """Versions of nvcc, the host's compiler and pybind11. Raises NativeBuildError if one does not start."""
    command = [tools.nvcc, "--version"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        failure = (done.stderr.strip() or f"exit status {done.returncode}") if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        failure = str(error)
    if failure:
        raise NativeBuildError("nvcc does not start", "a version from nvcc", " ".join(command), _REMEDIES, failure)
    return f"{done.stdout}\n{describe_tools(tools.host)}"
