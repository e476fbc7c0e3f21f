"""kv_scores: how much each cached position matters, from keys, values and the last queries of one layer."""

import torch

from adapt_kernels.dispatch import choose
from adapt_kernels.ops.kv_scores import reference
from adapt_kernels.ops.kv_scores.by_attention import by_queries

__all__ = ["NAMES", "kv_scores"]

NAMES = ("key_norm", "value_norm", "key_diff", "snap", "tova", "r_kv")
_BY_QUERIES = ("snap", "tova", "r_kv")


@torch.no_grad()
def kv_scores(
    name: str,
    keys,
    values=None,
    queries=None,
    mask=None,
    scale: float | None = None,
    softcap: float | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """float32 [S, H, T], or [S, T] for "tova": higher matters more.

        key_norm    -|k|                             value_norm   |v|
        key_diff    -cos(k, mean over T of k / |k|)
        snap        avg_pool5(mean over queries and the heads of a group of softmax(q.k))
        tova        mean over heads of softmax(q.k), last query
        r_kv        .07 * max_pool7(max over a group of the mean over queries of softmax(q.k))
                    - .93 * softmax over T of the mean over i of cos(k_i, k), where each i leaves out itself and the
                      newest k with cos > .5

    Query i of w sees the first T - w + 1 + i positions. The softmax runs over the T positions alone. Math in float32.

    Args:
        name: one of NAMES.
        keys: [S, H, T, D] floating. values: [S, H, T, Dv], for "value_norm".
        queries: [S, Hq, w, D], Hq a multiple of H, w <= T: those of the newest w positions, for snap, tova and r_kv.
        mask: bool [S, T], False = padding that nothing counts (its own score means nothing), or None.
        scale: factor of q.k, None = D ** -.5. softcap: c of c * tanh(. / c), None = none.
        backend: of r_kv's cosines of all pairs, by a name of `adapt_kernels.backends()`, or "auto": native on a CPU,
            triton on CUDA, else reference. All else has one form, in PyTorch: w queries have few weights beside T x T.

    Deterministic, no host sync, no randomness. Temporaries are one slot's; a T x T matrix is made by reference alone.
    Whether a cosine is beyond .5 may differ between backends where it is within float32's rounding of it.

    Raises ValueError or TypeError naming the argument, what was given and what is allowed; RuntimeError if an explicit
    backend cannot run.
    """
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(map(repr, NAMES))}; got {name!r}")
    _check_states("keys", keys, None)
    if name == "value_norm":
        _check_states("values", values, keys.shape[:3])
        return reference.value_norm(values)
    if mask is not None and (mask.dtype != torch.bool or mask.shape != (keys.shape[0], keys.shape[2])):
        wanted = (keys.shape[0], keys.shape[2])
        raise ValueError(f"mask must be bool {wanted}; got {mask.dtype} {tuple(mask.shape)}")
    if name not in _BY_QUERIES:
        return reference.key_norm(keys) if name == "key_norm" else reference.key_diff(keys, mask)
    _check_states("queries", queries, None)
    slots, heads, length, width = keys.shape
    given = queries.shape
    if given[0] != slots or given[1] % heads or given[3] != width or not 0 < given[2] <= length:
        raise ValueError(
            f"queries must be [{slots}, a multiple of {heads}, 1 to {length}, {width}] for keys {tuple(keys.shape)};"
            f" got {tuple(given)}"
        )
    scale = width**-0.5 if scale is None else scale
    similarity = choose("kv_scores", backend, keys).mean_similarity if name == "r_kv" else None
    rows = [
        by_queries(name, keys[i], queries[i], None if mask is None else mask[i], scale, softcap, similarity)
        for i in range(slots)
    ]
    empty = (0, length) if name == "tova" else (0, heads, length)
    return torch.stack(rows) if rows else keys.new_zeros(empty, dtype=torch.float32)


def _check_states(name: str, tensor, shape) -> None:
    if not torch.is_tensor(tensor) or not tensor.is_floating_point() or tensor.ndim != 4:
        shown = tuple(tensor.shape) if torch.is_tensor(tensor) else type(tensor).__name__
        raise TypeError(f"{name} must be a floating-point tensor of four dimensions; got {shown}")
    if shape is not None and tensor.shape[:3] != shape:
        raise ValueError(f"{name} must begin with shape {tuple(shape)}; got {tuple(tensor.shape)}")
