"""A pytest plugin, `-p triton_on_gpu`: triton_*_cases.py run compiled, on a GPU, where the interpreter runs elsewhere.

Their tensors are on the CPU. Every entry of a Triton backend takes copies on the GPU, at the same offsets and strides,
and gives its results back.
"""

from functools import partial, wraps
from importlib import import_module

import torch
from on_gpu import placed

_ENTRIES = {
    "branch": ("branch",),
    "kv_scores": ("mean_similarity",),
    "mode_sample": ("mode_sample",),
    "segment_attention": ("segment_attention",),
    "steer": ("advance", "probe", "decide", "step", "settle"),
}


def everywhere(value, move):
    """`move` of every tensor in nested tuples and lists."""
    if isinstance(value, torch.Tensor):
        return move(value)
    if isinstance(value, (tuple, list)):
        parts = [everywhere(part, move) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def on_gpu(entry, device="cuda"):
    """The entry for tensors on the CPU, run on the device."""

    @wraps(entry)
    def call(*arguments, **named):
        there = partial(placed, device=device)
        result = entry(*everywhere(arguments, there), **{k: everywhere(v, there) for k, v in named.items()})
        return everywhere(result, torch.Tensor.cpu)

    return call


def pytest_configure(config):
    for op, names in _ENTRIES.items():
        module = import_module(f"adapt_kernels.ops.{op}.triton_kernel")
        for name in names:
            setattr(module, name, on_gpu(getattr(module, name)))
