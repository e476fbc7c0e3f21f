"""`python -m adapt_kernels.env_report`: what a bug report needs. Works where the install is broken."""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Iterator

_PACKAGES = ("adapt_kernels", "torch", "transformers", "triton", "numpy", "safetensors", "pybind11", "ninja")


def report() -> str:
    """The report; a part that fails says so and the others follow."""
    lines = []
    for title, part in _PARTS.items():
        lines.append(f"{title}:")
        try:
            lines += [f"  {name}: {value}" for name, value in part()]
        except Exception as error:
            lines.append(f"  failed: {type(error).__name__}: {error}")
    return "\n".join(lines)


def _system() -> Iterator[tuple[str, object]]:
    yield "platform", platform.platform()
    yield "python", f"{platform.python_version()} ({platform.python_implementation()}, {platform.python_compiler()})"


def _packages() -> Iterator[tuple[str, object]]:
    for name in _PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, "not installed"


def _compiler() -> Iterator[tuple[str, object]]:
    from adapt_kernels.native import toolchain

    try:
        found = toolchain.find_toolchain()
        yield "command", " ".join(found.compiler)
        yield "version", toolchain.describe_tools(found).splitlines()[0]
        yield "ninja", found.ninja
    except toolchain.NativeBuildError as error:
        yield "missing", error.reason
    yield from _nvcc()


def _nvcc() -> Iterator[tuple[str, object]]:
    from adapt_kernels.native import toolchain_cuda
    from adapt_kernels.native.toolchain import NativeBuildError

    try:
        yield "nvcc", toolchain_cuda.find_nvcc()
    except NativeBuildError as error:
        yield "nvcc", f"missing: {error.reason}"


def _cpu() -> Iterator[tuple[str, object]]:
    from adapt_kernels.native.toolchain import describe_cpu

    for line in describe_cpu().splitlines()[1:]:
        name, _, value = line.partition(":")
        yield name.strip(), value.strip()
    yield "cores", f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}"


def _gpu() -> Iterator[tuple[str, object]]:
    import torch

    yield "torch threads", torch.get_num_threads()
    yield "torch built for", torch.version.cuda or torch.version.hip or "CPU"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    yield "GPUs", count
    for index in range(count):
        found = torch.cuda.get_device_properties(index)
        yield f"GPU {index}", f"{found.name}, sm_{found.major}{found.minor}, {found.total_memory >> 20} MiB"


def _backends() -> Iterator[tuple[str, object]]:
    from adapt_kernels.dispatch import backends

    for name, reason in backends().items():
        yield name, "can run" if reason is None else reason


def _architectures() -> list[str]:
    """Of the GPUs here, as nvcc names them."""
    try:
        import torch
    except ImportError:
        return []
    if torch.version.hip or not torch.cuda.is_available():
        return []
    capabilities = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    return [f"sm_{major}{minor}" for major, minor in sorted(capabilities)]


def _cache() -> Iterator[tuple[str, object]]:
    from adapt_kernels.native import jit, jit_cuda

    yield "folder", jit.cache_folder()
    yield "compiled for this machine", jit.find_built(jit.native_extension()) or "not yet"
    for architecture in _architectures():
        found = jit.find_built(jit_cuda.cuda_extension(architecture))
        yield f"compiled for {architecture}", found or "not yet"


def _variables() -> Iterator[tuple[str, object]]:
    from adapt_kernels import env

    for variable in env.VARIABLES:
        yield variable.name, env.get(variable.name) or "not set"


_PARTS: dict[str, Callable[[], Iterator[tuple[str, object]]]] = {
    "system": _system,
    "packages": _packages,
    "compiler": _compiler,
    "cpu": _cpu,
    "torch": _gpu,
    "backends": _backends,
    "cache": _cache,
    "environment": _variables,
}

if __name__ == "__main__":
    print(report())
    sys.exit(0)
