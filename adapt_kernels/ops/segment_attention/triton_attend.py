"""The kernels of segment_attention."""

import triton
import triton.language as tl


# Lengths, places and splits change from step to step: 1 and multiples of 16 must not compile a kernel of their own.
@triton.jit(
    do_not_specialize=["length", "offset", "window_start", "num_splits", "split", "split_positions"],
)
def attend(
    query_ptr, query_row, query_head, size, share, heads,
    keys_ptr, keys_entry, keys_head, keys_position, values_ptr, values_entry, values_head, values_position,
    value_size, length, order_ptr, first_ptr, offset, starts_ptr, window_start, scale, softcap,
    parts_ptr, maxima_ptr, sums_ptr, num_splits, split, split_positions, kv_heads,
    QUERIES: tl.constexpr, POSITIONS: tl.constexpr, SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One group, one KV head, QUERIES of its queries, one split of its positions."""
    group = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1) % kv_heads
    block = tl.program_id(1) // kv_heads
    begin = tl.program_id(2) * split_positions
    if first_ptr is None:
        member, members = group, 1
    else:
        member = tl.load(first_ptr + group)
        members = tl.load(first_ptr + group + 1) - member
    if block * QUERIES < members * share:
        # Query i of a group: head i % share of its row i // share.
        i = block * QUERIES + tl.arange(0, QUERIES)
        present = i < members * share
        row = member + i // share
        if order_ptr is not None:
            row = tl.load(order_ptr + row, mask=present, other=0)
        head = kv_head * share + i % share
        d = tl.arange(0, SIZE)
        dv = tl.arange(0, VALUE_SIZE)
        at = row[:, None] * query_row + head[:, None] * query_head + d[None, :]
        query = tl.load(query_ptr + at, mask=present[:, None] & (d < size)[None, :], other=0.0)  # [QUERIES, SIZE]
        if UPCAST:
            query = query.to(tl.float32)
        start = tl.zeros([QUERIES], dtype=tl.int64) + window_start
        if starts_ptr is not None:
            start = tl.maximum(start, tl.load(starts_ptr + row, mask=present, other=0))
        maximum = tl.full([QUERIES], float("-inf"), dtype=tl.float32)
        total = tl.zeros([QUERIES], dtype=tl.float32)
        mixed = tl.zeros([QUERIES, VALUE_SIZE], dtype=tl.float32)
        keys_ptr += group * keys_entry + kv_head * keys_head
        values_ptr += group * values_entry + kv_head * values_head
        for position in range(begin, tl.minimum(begin + split_positions, length), POSITIONS):
            p = position + tl.arange(0, POSITIONS)
            inside = p < length
            p = p.to(tl.int64)
            keys = tl.load(
                keys_ptr + p[None, :] * keys_position + d[:, None],
                mask=inside[None, :] & (d < size)[:, None],
                other=0.0,
            )  # [SIZE, POSITIONS]
            values = tl.load(
                values_ptr + p[:, None] * values_position + dv[None, :],
                mask=inside[:, None] & (dv < value_size)[None, :],
                other=0.0,
            )  # [POSITIONS, VALUE_SIZE]
            if UPCAST:
                keys = keys.to(tl.float32)
                values = values.to(tl.float32)
            scores = tl.dot(query, keys, input_precision="ieee") * scale
            if softcap > 0:
                scores = softcap * _tanh(scores / softcap)
            seen = inside[None, :] & (p[None, :] + offset >= start[:, None])
            scores = tl.where(seen, scores, float("-inf"))
            higher = tl.maximum(maximum, tl.max(scores, 1))
            # Before the first position that counts, both are -inf.
            safe = tl.where(higher == float("-inf"), 0.0, higher)
            weights = tl.exp(scores - safe[:, None])
            fade = tl.exp(maximum - safe)
            total = total * fade + tl.sum(weights, 1)
            mixed = mixed * fade[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
            maximum = higher
        part = (row * heads + head) * num_splits + split + tl.program_id(2)
        tl.store(maxima_ptr + part, maximum, mask=present)
        tl.store(sums_ptr + part, total, mask=present)
        there = present[:, None] & (dv < value_size)[None, :]
        tl.store(parts_ptr + part[:, None] * value_size + dv[None, :], mixed, mask=there)


@triton.jit(do_not_specialize=["num_splits"])
def merge(
    parts_ptr, maxima_ptr, sums_ptr, num_splits, sinks_ptr, heads, out_ptr, value_size,
    SPLITS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """One row and head: its splits weighted by their maxima, SPLITS at a time, the sink in the denominator."""
    query = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, SIZE)
    highest = tl.full((), float("-inf"), tl.float32)
    if sinks_ptr is not None:
        sink = tl.load(sinks_ptr + query % heads).to(tl.float32)
        highest = tl.maximum(highest, sink)
    for first in range(0, num_splits, SPLITS):
        s = first + tl.arange(0, SPLITS)
        maxima = tl.load(maxima_ptr + query * num_splits + s, mask=s < num_splits, other=float("-inf"))
        highest = tl.maximum(highest, tl.max(maxima, 0))
    total = tl.zeros((), tl.float32)
    if sinks_ptr is not None:
        total += tl.exp(sink - highest)
    mixed = tl.zeros([SIZE], tl.float32)
    for first in range(0, num_splits, SPLITS):
        s = first + tl.arange(0, SPLITS)
        maxima = tl.load(maxima_ptr + query * num_splits + s, mask=s < num_splits, other=float("-inf"))
        sums = tl.load(sums_ptr + query * num_splits + s, mask=s < num_splits, other=0.0)
        weights = tl.exp(maxima - highest)
        total += tl.sum(weights * sums, 0)
        at = (query * num_splits + s[:, None]) * value_size + d[None, :]
        parts = tl.load(parts_ptr + at, mask=(s < num_splits)[:, None] & (d < value_size)[None, :], other=0.0)
        mixed += tl.sum(parts * weights[:, None], 0)
    mixed = mixed / total
    tl.store(out_ptr + query * value_size + d, mixed.to(out_ptr.dtype.element_ty), mask=d < value_size)


@triton.jit
def _tanh(x):
    # exp of a value <= 0 cannot overflow.
    e = tl.exp(-2.0 * tl.abs(x))
    t = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -t, t)
