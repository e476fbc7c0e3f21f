"""segment_attention on Triton: one launch per segment, one to merge.

`attend` gives each program a group of rows, a KV head, a block of that group's queries (rows x heads per KV head) and a
split of the segment's positions: the queries form a matrix tile, so that a prompt is read once for all its samples. It
leaves a maximum, a sum and a weighted sum of values per query and split. `merge` adds the splits of all segments and
the sink, in one fixed order. Nothing depends on the other rows of the batch but which tile a query stands in.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch

from adapt_kernels.triton_driver import OPTIONS

try:
    import triton

    from adapt_kernels.ops.segment_attention.triton_attend import attend, merge
except ModuleNotFoundError:
    triton = None


@dataclass(frozen=True)
class Config:
    """Tile sizes, powers of two, for 16-bit tensors and heads of up to 128; smaller ones follow for float32 and larger
    heads. split_positions is the least that one program reads (see `split_of`), a multiple of `positions`,
    merged_splits how many of those are added at a time."""

    queries: int = 64
    positions: int = 64
    split_positions: int = 128
    merged_splits: int = 16
    warps: int = 4


_DEFAULT = Config()
LARGEST_HEAD = 512
MERGED = 2048  # numbers of parts that `merge` holds at a time: more would spill


# One row of 2048 positions and 8 KV heads is 128 programs; an H100 has 132 SMs. Splits cost their parts: a position is
# 4 D bytes of keys and values, a query's part 4 D written and read, so `share` queries add 2 share / split: for 4 and 8
# of them 6 and 13 % at 128 positions (lengths to 4k), 3 and 6 % at 256 (to 16k), 2 and 3 % at 512 (to 64k), 1 and 2 %
# at 1024 (to 256k). 64 queries that share a prompt add its bytes once more at 128; apart they read it 8 to 16 times.
def split_of(length: int, config: Config = _DEFAULT) -> int:
    """Positions of one program, by the segment's length alone: a row's sums must not change order with its batch."""
    split = config.split_positions
    while split * split < 4 * length:
        split *= 2
    return split


def segment_attention(query, segments, scale, starts, window, softcap, sinks, config: Config = _DEFAULT):
    """See `adapt_kernels.ops.segment_attention.segment_attention`."""
    if query.dtype == torch.float64:
        raise ValueError("query must be float32, bfloat16 or float16 here; float64 needs backend='reference'")
    rows, heads, size = query.shape
    if max(size, segments[0].values.shape[3]) > LARGEST_HEAD:
        raise ValueError(
            f"heads must be at most {LARGEST_HEAD} wide here; got {size} and {segments[0].values.shape[3]}"
        )
    value_size = segments[0].values.shape[3]
    out = torch.empty(rows, heads, value_size, dtype=query.dtype, device=query.device)
    if rows == 0:
        return out
    lengths = [segment.keys.shape[2] for segment in segments]
    splits = [triton.cdiv(length, split_of(length, config)) for length in lengths]
    values = torch.empty(rows, heads, sum(splits), value_size, dtype=torch.float32, device=query.device)
    maxima, sums = torch.empty(2, rows, heads, sum(splits), dtype=torch.float32, device=query.device)
    parts = (values, maxima, sums, sum(splits))
    mask = (starts, 0 if window is None else max(sum(lengths) - window, 0), scale, softcap or 0.0)
    with torch.cuda.device(query.device) if query.device.type == "cuda" else nullcontext():
        offset = split = 0
        for segment, count in zip(segments, splits, strict=True):
            if count:
                _launch_attend(query, segment, offset, split, count, parts, mask, config)
            offset, split = offset + segment.keys.shape[2], split + count
        merge[(rows * heads,)](
            *(*parts, sinks, heads, out, value_size),
            SPLITS=max(1, min(config.merged_splits, MERGED // triton.next_power_of_2(value_size))),
            SIZE=triton.next_power_of_2(value_size),
            **OPTIONS,
        )
    return out


def _launch_attend(query, segment, offset, split, count, parts, mask, config) -> None:
    keys, values, groups = segment
    rows, heads, size = query.shape
    share = heads // keys.shape[1]
    largest = 1 if groups is None else groups.largest
    padded = [max(16, triton.next_power_of_2(width)) for width in (size, values.shape[3])]
    queries, positions, stages = _tile(config, max(padded), query.element_size())
    tile = min(queries, max(16, triton.next_power_of_2(largest * share)))
    order, first = (None, None) if groups is None else (groups.order, groups.first)
    number = rows if groups is None else len(keys)
    grid = (number, keys.shape[1] * triton.cdiv(largest * share, tile), count)
    attend[grid](
        *(query, query.stride(0), query.stride(1), size, share, heads),
        *(keys, *keys.stride()[:3], values, *values.stride()[:3], values.shape[3], keys.shape[2]),
        *(order, first, offset, *mask, *parts, split, split_of(keys.shape[2], config), keys.shape[1]),
        QUERIES=tile,
        POSITIONS=positions,
        SIZE=padded[0],
        VALUE_SIZE=padded[1],
        # The interpreter computes with the bits of 16-bit floats: there products are float32 throughout.
        UPCAST=bool(triton.knobs.runtime.interpret),
        num_warps=config.warps if tile * size <= 4096 else 2 * config.warps,
        **stages,
        **OPTIONS,
    )


def _tile(config: Config, size: int, item_bytes: int) -> tuple[int, int, dict]:
    """(queries, positions, stages) whose tiles of `size` columns fit shared memory and registers of every target."""
    halving = item_bytes // 2
    times = max(1, size // 128)
    queries, positions = config.queries // (halving * max(1, times // 2)), config.positions // (halving * times)
    return max(16, queries), max(16, positions), {} if times * halving < 4 else {"num_stages": 4 // times}
