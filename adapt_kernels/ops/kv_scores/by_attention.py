"""Scores of kv_scores that read the last queries, but for r_kv's cosines of all pairs, which each backend has."""

import torch
from torch.nn import functional

SIMILAR = 0.5  # of r_kv: the cosine beyond which two keys are
_SNAP_POOL, _R_KV_POOL, _R_KV_SHARE = 5, 7, 0.07
_NEG_INF = float("-inf")


def by_queries(name: str, keys, queries, mask, scale: float, softcap, similarity) -> torch.Tensor:
    """Of one slot: keys [H, T, D], queries [Hq, w, D], mask [T] or None. similarity: a backend's `mean_similarity`."""
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
