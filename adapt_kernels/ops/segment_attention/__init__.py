"""segment_attention: attention of one new token per row over KV that lies in segments, some shared between rows."""

import torch

from adapt_kernels.dispatch import choose
from adapt_kernels.ops.segment_attention.segments import RowGroups, Segment, checked, group_rows

__all__ = ["RowGroups", "Segment", "group_rows", "segment_attention"]


@torch.no_grad()
def segment_attention(
    query, segments, scale=None, starts=None, window=None, softcap=None, sinks=None, backend="auto"
) -> torch.Tensor:
    """Attention of each row's newest position over all its positions, which the segments hold one after another.

        K, V  = concatenation over segments of keys[group of row], values[group of row]        (positions 0 .. n - 1)
        s     = q . K * scale;  s = softcap * tanh(s / softcap);  s = -inf outside [max(start, n - window), n)
        out   = softmax([s, sink])[without the sink] . V

    Each segment is read once per group of rows that share it, the parts are merged by log-sum-exp.

    Args:
        query: [B, Hq, D], float32, bfloat16 or float16 (the reference backend also float64); last stride 1.
            Head h reads KV head h // (Hq / Hkv).
        segments: 1 to 3 `Segment(keys [G, Hkv, T, D], values [G, Hkv, T, Dv], groups)` in the order of positions;
            T >= 0, dtype and device of `query`, last stride 1. `groups=None`: row b owns entry b (G >= B);
            `group_rows(...)`: rows share entries. The newest position is the last of the last segment; write it before.
        scale: float; None = D ** -0.5.
        starts: [B] int64, the first position that is no left padding; None = 0. It must leave the newest position.
        window: int >= 1, positions a row may look back on, the newest included; None = all.
        softcap: float > 0; None = none. sinks: [Hq] float, one more logit per head; None = none.
        backend: "auto" (triton on CUDA, else reference), "reference" or "triton".

    Returns [B, Hq, Dv] in the dtype of `query`; sums in float32 (float64 for float64). No randomness, no host sync; the
    result of a row does not depend on the other rows. Triton takes one launch per segment that holds positions, and one
    to merge. Memory read: each shared segment once per block of 64 queries of its group.

    Raises ValueError or TypeError naming the argument, what was given and what is allowed; RuntimeError if an explicit
    backend cannot run.
    """
    arguments = checked(query, segments, scale, starts, window, softcap, sinks)
    return choose("segment_attention", backend, query).segment_attention(*arguments)
