"""kv_scores in plain PyTorch."""

import torch
from torch.nn import functional

from adapt_kernels.ops.kv_scores.by_attention import SIMILAR


def key_norm(keys) -> torch.Tensor:
    return -torch.linalg.vector_norm(keys.float(), dim=-1)


def value_norm(values) -> torch.Tensor:
    return torch.linalg.vector_norm(values.float(), dim=-1)


def key_diff(keys, mask) -> torch.Tensor:
    unit = functional.normalize(keys.float(), dim=-1)
    counted = unit if mask is None else unit * mask[:, None, :, None]
    # The cosine does not see the length of the mean.
    return -functional.cosine_similarity(unit, counted.sum(2, keepdim=True), dim=-1)


def mean_similarity(unit) -> torch.Tensor:
    """[H, T]: the mean over i of cos(k_i, k), for keys of length 1, or 0, [H, T, D]; each i leaves out itself and the
    newest k with cos > SIMILAR."""
    similar = unit @ unit.transpose(1, 2)
    similar.diagonal(dim1=1, dim2=2).zero_()
    place = torch.arange(similar.shape[-1], device=unit.device)
    newest = torch.where(similar > SIMILAR, place, -1).amax(-1, keepdim=True)
    return similar.masked_fill(place == newest, 0.0).mean(1)
