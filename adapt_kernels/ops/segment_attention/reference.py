"""segment_attention in plain torch: one matrix product per shared segment for all its rows, merged by log-sum-exp."""

import torch

_SCORES = 1 << 22  # of one product; more positions are taken in pieces, so that scores stay in the caches


def segment_attention(query, segments, scale, starts, window, softcap, sinks) -> torch.Tensor:
    """See `adapt_kernels.ops.segment_attention.segment_attention`."""
    precise = torch.float64 if query.dtype == torch.float64 else torch.float32
    rows, heads, _ = query.shape
    kv_heads = segments[0].keys.shape[1]
    scaled = (query.to(precise) * scale).unflatten(1, (kv_heads, heads // kv_heads))  # [B, Hkv, heads per KV head, D]
    seen_from = 0 if window is None else max(sum(s.keys.shape[2] for s in segments) - window, 0)
    own_starts = None if starts is None else starts[:, None]
    parts, offset = [], 0
    for keys, values, groups in segments:
        length = keys.shape[2]
        tile, tile_starts = (scaled, own_starts) if groups is None else _by_group(scaled, starts, groups)
        step = max(64, _SCORES // max(1, tile.shape[0] * kv_heads * tile.shape[2]))
        for begin in range(max(seen_from - offset, 0), length, step):
            piece = slice(begin, min(begin + step, length))
            near, held = (tensor[: len(tile), :, piece].to(precise) for tensor in (keys, values))
            part = _attend(tile, near, held, softcap, None if tile_starts is None else tile_starts - offset - begin)
            parts.append(part if groups is None else tuple(_by_row(found, groups, rows) for found in part))
        offset += length
    if sinks is not None:
        sink = sinks.to(precise).view(1, kv_heads, -1, 1).expand(rows, -1, -1, -1)
        parts.append((sink, torch.ones_like(sink), sink.new_zeros(1)))
    return _merge(parts).flatten(1, 2).to(query.dtype)


def _attend(tile, keys, values, softcap, starts):
    """(maximum, sum, weighted sum of values) of tile [G, Hkv, Q, D]; starts [G, Q] counts from the first key."""
    scores = tile @ keys.transpose(2, 3)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if starts is not None:
        position = torch.arange(keys.shape[2], device=keys.device)
        scores = scores.masked_fill((position < starts[..., None])[:, None], float("-inf"))
    maximum = scores.amax(3, keepdim=True)
    # A part that a row does not see has no largest score.
    weights = scores.sub_(maximum.clamp(min=torch.finfo(scores.dtype).min)).exp_()
    return maximum, weights.sum(3, keepdim=True), weights @ values


def _by_group(scaled, starts, groups):
    """Queries [G, Hkv, seats x heads per KV head, D] and their starts [G, seats x heads per KV head]."""
    share = scaled.shape[2]
    tile = scaled[groups.seats].transpose(1, 2).flatten(2, 3)
    return tile, None if starts is None else starts[groups.seats].repeat_interleave(share, 1)


def _by_row(found, groups, rows: int):
    """[B, Hkv, heads per KV head, n] from [G, Hkv, seats x heads per KV head, n]."""
    seats = groups.seats.shape[1]
    split = found.unflatten(2, (seats, found.shape[2] // seats)).transpose(1, 2)
    return split.flatten(0, 1)[groups.seat_of_row]


def _merge(parts):
    if len(parts) == 1:
        _, total, mixed = parts[0]
        return mixed / total
    maxima, totals, mixed = zip(*parts, strict=True)
    highest = torch.stack(maxima).amax(0)
    weights = [torch.exp(maximum - highest) for maximum in maxima]
    total = sum(weight * part for weight, part in zip(weights, totals, strict=True))
    return sum(weight * part for weight, part in zip(weights, mixed, strict=True)) / total
