"""kv_scores in plain PyTorch."""

import torch
from torch.nn import functional

_SNAP_POOL, _R_KV_POOL, _R_KV_SHARE = 5, 7, 0.07
SIMILAR = 0.5  # of r_kv: the cosine from which two keys are
_NEG_INF = float("-inf")


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


def by_queries(name: str, keys, queries, mask, scale: float, softcap, similarity=mean_similarity) -> torch.Tensor:
    """Of one slot: keys [H, T, D], queries [Hq, w, D], mask [T] or None."""
    weights = _attention(keys, queries, mask, scale, softcap)  # [H, group, w, T]
    if name == "tova":
        return weights[:, :, -1].mean((0, 1))
    if name == "snap":
        return functional.avg_pool1d(weights.mean((1, 2)), _SNAP_POOL, 1, _SNAP_POOL // 2)
    importance = functional.max_pool1d(weights.mean(2).amax(1), _R_KV_POOL, 1, _R_KV_POOL // 2)
    return _R_KV_SHARE * importance - (1 - _R_KV_SHARE) * _redundancy(keys, mask, similarity)


def _attention(keys, queries, mask, scale: float, softcap) -> torch.Tensor:
    heads, length, _ = keys.shape
    grouped = queries.unflatten(0, (heads, -1)).float()
    logits = torch.einsum("hgwd,htd->hgwt", grouped, keys.float()) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    count = queries.shape[1]
    place = torch.arange(length, device=keys.device)
    unseen = place > place[length - count :, None]
    if mask is not None:
        unseen = unseen | ~mask
    return logits.masked_fill(unseen, _NEG_INF).softmax(-1).nan_to_num(0.0)


def _redundancy(keys, mask, similarity) -> torch.Tensor:
    unit = functional.normalize(keys.float(), dim=-1)
    mean = similarity(unit if mask is None else unit * mask[:, None])
    return (mean if mask is None else mean.masked_fill(~mask, _NEG_INF)).softmax(-1)
