"""segment_attention in plain torch: the segments gathered, one softmax."""

import torch


def segment_attention(query, segments, scale, starts, window, softcap, sinks) -> torch.Tensor:
    """See `adapt_kernels.ops.segment_attention.segment_attention`."""
    precise = torch.float64 if query.dtype == torch.float64 else torch.float32
    rows = torch.arange(len(query), device=query.device)
    owners = [rows if s.groups is None else s.groups.group_of_row for s in segments]
    keys, values = (
        torch.cat([getattr(s, name)[owner] for s, owner in zip(segments, owners, strict=True)], 2).to(precise)
        for name in ("keys", "values")
    )
    share = query.shape[1] // keys.shape[1]
    grouped = query.to(precise).unflatten(1, (keys.shape[1], share))  # [B, Hkv, heads per KV head, D]
    scores = grouped @ keys.transpose(2, 3) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    position = torch.arange(keys.shape[2], device=query.device)
    first = torch.zeros_like(rows) if starts is None else starts
    if window is not None:
        first = first.clamp(min=len(position) - window)
    scores = scores.masked_fill((position < first[:, None])[:, None, None], float("-inf"))
    if sinks is not None:
        sink = sinks.to(precise).view(1, keys.shape[1], share, 1).expand(len(query), -1, -1, -1)
        scores = torch.cat([scores, sink], 3)
    weights = torch.softmax(scores, 3)[..., : len(position)]
    return (weights @ values).flatten(1, 2).to(query.dtype)
