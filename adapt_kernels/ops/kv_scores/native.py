"""kv_scores in C++ (`csrc/cpu/kv_scores.cpp`): the cosines of all pairs of keys, which no matrix holds."""

import torch

from adapt_kernels.native.kernels import launch
from adapt_kernels.native.rows import address
from adapt_kernels.ops.kv_scores.by_attention import SIMILAR

DEVICES = ("cpu",)
_BLOCK = 32  # kBlock


def mean_similarity(unit: torch.Tensor) -> torch.Tensor:
    """[H, T] for keys of length 1, or 0, [H, T, D]: what the reference's gives."""
    heads, length, width = unit.shape
    padded = torch.nn.functional.pad(unit, (0, 0, 0, -length % _BLOCK))
    blocks = padded.unflatten(1, (padded.shape[1] // _BLOCK, _BLOCK))
    columns = blocks.transpose(2, 3).contiguous()  # [H, blocks, D, _BLOCK]
    mean = torch.empty(heads, length)
    sizes = heads, length, width, padded.shape[1]
    launch("similar_keys", unit.device, address(columns), address(mean), *sizes, SIMILAR)
    return mean
