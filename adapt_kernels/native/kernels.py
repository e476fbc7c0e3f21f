"""Calls the compiled kernels of the credit ops: C++ for tensors on the CPU, CUDA for tensors on a GPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import torch

from adapt_kernels.native import jit, jit_cuda
from adapt_kernels.native.rows import check_status
from adapt_kernels.native.toolchain import NativeBuildError

DEVICES = ("cpu", "cuda")


def load(device: torch.device) -> ModuleType:
    """The kernels for a device, compiled if they never were. Raises NativeBuildError."""
    return _cuda_module(device) if on_gpu(device) else jit.load()


def on_gpu(device: torch.device) -> bool:
    """Whether the CUDA kernels serve this device."""
    return device.type == "cuda"


def launch(
    name: str, device: torch.device, *arguments, workspace: Callable[[ModuleType], torch.Tensor] | None = None
) -> None:
    """Runs `<name>_cpu` at once, or queues `<name>_cuda` on the device's current stream: no sync.

    arguments: the numbers of csrc/include/adapt/credit_numbers.h without threads. workspace: makes the memory that the
    CUDA form alone takes. Tensors whose addresses are given must live until this returns; on a GPU the allocator keeps
    the stream's order after that. Raises NativeBuildError, and RuntimeError if the kernel refuses.
    """
    if not on_gpu(device):
        status = getattr(jit.load(), f"{name}_cpu")(*arguments, torch.get_num_threads())
    else:
        with _queue(device) as (module, stream):
            scratch = [] if workspace is None else [workspace(module)]
            threads = 1  # the CPU's argument
            status = getattr(module, f"{name}_cuda")(*arguments, threads, *(s.data_ptr() for s in scratch), stream)
    check_status(name, status)


@contextmanager
def _queue(device: torch.device) -> Iterator[tuple[ModuleType, int]]:
    """Kernels of a GPU and the handle of its current stream, while that GPU is the current one."""
    module = _cuda_module(device)
    with torch.cuda.device(device):
        yield module, torch.cuda.current_stream(device).cuda_stream


def _cuda_module(device: torch.device) -> ModuleType:
    if torch.version.hip:
        raise NativeBuildError(
            "this torch is built for AMD GPUs",
            "an NVIDIA GPU",
            f"torch {torch.__version__}",
            ("use backend='reference'",),
        )
    major, minor = torch.cuda.get_device_capability(device)
    return jit_cuda.load(f"sm_{major}{minor}")
