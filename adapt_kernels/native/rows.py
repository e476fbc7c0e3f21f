"""How rows reach a native kernel: addresses, strides and the memory a gradient is written to."""

import mmap
import sys
from contextlib import suppress

import torch

LOGITS_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # enum LogitsType
# From here on fresh pages cost more than the gradient itself: 311 MB in pages of 4 KB is 170 ms of page faults.
_LARGE_BYTES = 4 << 20


def logit_rows(logits: torch.Tensor) -> tuple[int, ...]:
    """Structure LogitRows of logits [B, T, V]."""
    batch, inner, vocab_size = logits.shape
    strides = logits.stride(0), logits.stride(1)
    return logits.data_ptr(), LOGITS_TYPES[logits.dtype], batch * inner, max(inner, 1), vocab_size, *strides


def gradient_rows(gradient: torch.Tensor | None) -> tuple[int, ...]:
    """Address and row strides of a gradient [B, T, V]; 0 for none."""
    return (0, 0, 0) if gradient is None else (gradient.data_ptr(), gradient.stride(0), gradient.stride(1))


def address(tensor: torch.Tensor | None) -> int:
    """Of the data; 0 for None. The tensor must be contiguous, and outlive the kernel."""
    return 0 if tensor is None else tensor.data_ptr()


def large_empty(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, bool]:
    """Contiguous memory, and whether it holds zeros already.

    Large blocks on the CPU come straight from the system: in huge pages where it has them, and zero, so that rows
    without a gradient need not even be touched.
    """
    num_bytes = shape.numel() * dtype.itemsize
    if device.type != "cpu" or num_bytes < _LARGE_BYTES or sys.platform != "linux":
        return torch.empty(shape, dtype=dtype, device=device), False
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a system without huge pages
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape), True


def rescaled(op: str, gradient: torch.Tensor, loss_grad: torch.Tensor, grad_scale: float) -> torch.Tensor:
    """`gradient`, written for grad_scale, for what the loss is in fact multiplied by."""
    if type(loss_grad) is torch.Tensor:  # subclasses stand for tensors that have no value yet
        no_second_derivative(op)
        if loss_grad.device.type == "cpu" and loss_grad.item() == grad_scale:
            return gradient
    return gradient * (loss_grad / grad_scale).to(gradient.dtype)


def no_second_derivative(op: str) -> None:
    """Raises RuntimeError in a backward() that is itself recorded."""
    if torch.is_grad_enabled():
        raise RuntimeError(f"{op} has no second derivative: call backward without create_graph=True")


def check_status(op: str, status: int) -> None:
    """Raises RuntimeError for anything but 0."""
    if status:
        cause = {1: ": a dtype it does not know", 2: ": CUDA refused the launch"}.get(status, "")
        raise RuntimeError(f"{op}'s native kernel returned status {status}{cause}")
