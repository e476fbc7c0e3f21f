"""Compiles `csrc/cuda/` for one GPU architecture on first use, in `jit`'s cache. Importing this module does nothing."""

import re
import sysconfig
import threading
from pathlib import Path
from types import ModuleType

from adapt_kernels.native import jit
from adapt_kernels.native.toolchain import NativeBuildError
from adapt_kernels.native.toolchain_cuda import CudaToolchain, describe_cuda_tools, find_cuda_toolchain

# No -march=native: the host's part only fills structures, and a cache may serve other CPUs.
HOST_FLAGS = ("-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden")
NVCC_FLAGS = ("-std=c++17", "-O3", "-lineinfo", "-Xcompiler", "-fPIC,-fvisibility=hidden")
# The runtime goes in: torch may be built with another version of it.
LINK_FLAGS = ("-shared", "--cudart", "static")
_loading = threading.Lock()
_outcomes: dict[str, ModuleType | NativeBuildError] = {}


class CudaExtension(jit.Extension):
    """The kernels of `cuda/` and their binding, for one architecture such as "sm_90"."""

    __slots__ = ()

    @property
    def expected_seconds(self) -> int:
        return 30

    def sources(self) -> list[Path]:
        """What is compiled, one object each."""
        return [self.folder / "cuda/bindings.cpp", *sorted(self.folder.glob("cuda/*.cu"))]

    def inputs(self) -> list[Path]:
        """What the result depends on."""
        return sorted([*self.sources(), *self.folder.glob("cuda/*.cuh"), *self.folder.glob("include/**/*.h")])

    def key_words(self) -> tuple[str, ...]:
        """What else the machine code depends on, but for the tools: not on this machine's CPU."""
        flags = (*HOST_FLAGS, *NVCC_FLAGS, *LINK_FLAGS, self.architecture)
        return (self.name, *flags, str(sysconfig.get_config_var("SOABI")), sysconfig.get_platform())

    def find_tools(self) -> CudaToolchain:
        """What compiles it. Raises NativeBuildError."""
        return find_cuda_toolchain()

    def describe_tools(self, tools: CudaToolchain) -> str:
        """Versions of the tools. Raises NativeBuildError."""
        return describe_cuda_tools(tools)

    def ninja_file(self, tools: CudaToolchain) -> str:
        """The build description ninja runs."""
        number = self.architecture.removeprefix("sm_")
        include = f"-I{self.folder / 'include'}"
        # nvcc takes one word for its host compiler; with more in CXX it takes the g++ on PATH.
        nvcc = [tools.nvcc, *(("-ccbin", *tools.host.compiler) if len(tools.host.compiler) == 1 else ())]
        host = [*tools.host.compiler, *HOST_FLAGS, include, *(f"-isystem{folder}" for folder in tools.host.includes)]
        device = [*nvcc, *NVCC_FLAGS, include, "-gencode", f"arch=compute_{number},code=sm_{number}"]
        lines = [
            "ninja_required_version = 1.3",
            "rule host",
            f"  command = {jit.command(host)} -c $in -o $out",
            "rule device",
            f"  command = {jit.command(device)} -c $in -o $out",
            "rule link",
            f"  command = {jit.command([*nvcc, *LINK_FLAGS])} $in -o $out",
        ]
        objects = []
        for source in self.sources():
            objects.append(f"{source.stem}.o")
            rule = "device" if source.suffix == ".cu" else "host"
            lines.append(f"build {objects[-1]}: {rule} {jit.ninja_path(source)}")
        lines.append(f"build {self.name}.so: link {' '.join(objects)}")
        return "\n".join(lines) + "\n"

    def compile_error(self, tools: CudaToolchain, output: str) -> NativeBuildError:
        """The error for sources that nvcc or the host's compiler refused."""
        return NativeBuildError(
            f"the CUDA sources do not compile for {self.architecture}",
            "nvcc 12 or newer that knows this architecture, and a host compiler it supports",
            tools.nvcc,
            ("set CUDA_HOME to a newer toolkit", "set CXX to a g++ that this nvcc supports"),
            output,
        )


def cuda_extension(architecture: str) -> CudaExtension:
    """The extension for an architecture written as "sm_90", else ValueError. NativeBuildError without its sources."""
    if not re.fullmatch(r"sm_[0-9]{2,3}[af]?", architecture):
        raise ValueError(f"architecture must be like 'sm_90'; got {architecture!r}")
    return CudaExtension("adapt_cuda", jit.native_extension().folder, architecture)


def load(architecture: str) -> ModuleType:
    """The kernels for one architecture; compiled by the first process that asks. Raises NativeBuildError."""
    found = _outcomes.get(architecture)
    if isinstance(found, ModuleType):
        return found
    with _loading:
        found = _outcomes.get(architecture)
        if found is None:
            try:
                extension = cuda_extension(architecture)
                found = jit.import_built(extension, jit.build(extension).path)
            except NativeBuildError as error:
                # As in `jit.load`: what does not compile is not tried again, a missing tool is looked for again.
                if not error.output:
                    raise
                found = error
            _outcomes[architecture] = found
    if isinstance(found, NativeBuildError):
        raise found.with_traceback(None)
    return found
