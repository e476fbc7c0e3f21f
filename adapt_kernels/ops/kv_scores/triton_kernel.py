"""kv_scores on Triton: the cosines of all pairs of keys, which no matrix holds; two launches.

`find_newest` looks for the newest key similar to each, from the newest tile of keys backwards, and stops where each has
found its like. All cosines of a key add up to its product with the sum of the keys; `average_rest` subtracts the one
with itself and those of the keys whose newest it is. Programs share nothing: the result does not depend on their order.
"""

from contextlib import nullcontext

import torch
from torch.nn import functional

from adapt_kernels.ops.kv_scores.by_attention import SIMILAR
from adapt_kernels.triton_driver import OPTIONS

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError:
    triton = None

_KEYS, _OTHERS, _COLUMNS = 64, 64, 16
_WARPS = 8  # of find_newest: with four, threads spill


def mean_similarity(unit: torch.Tensor) -> torch.Tensor:
    """[H, T] for keys of length 1, or 0, [H, T, D]: what the reference's gives."""
    heads, length, width = unit.shape
    mean, cosine = (torch.empty(heads, length, device=unit.device) for _ in range(2))
    newest = torch.empty(heads, length, dtype=torch.int32, device=unit.device)
    if mean.numel() == 0:
        return mean
    # Whole tiles of columns, which are read 16 bytes at a time.
    unit = functional.pad(unit, (0, -width % _COLUMNS)) if width % _COLUMNS else unit.contiguous()
    keys = unit, unit.shape[2], length
    grid = triton.cdiv(length, _KEYS), heads
    tiles = {"KEYS": _KEYS, "OTHERS": _OTHERS, "COLUMNS": _COLUMNS}
    with torch.cuda.device(unit.device) if unit.device.type == "cuda" else nullcontext():
        find_newest[grid](*keys, newest, cosine, SIMILAR=SIMILAR, num_warps=_WARPS, **tiles, **OPTIONS)
        average_rest[grid](*keys, unit.sum(1), newest, cosine, mean, **tiles, **OPTIONS)
    return mean


if triton is not None:
    # The length changes from call to call: 1 and multiples of 16 must not compile a kernel of their own.
    @triton.jit(do_not_specialize=["length"])
    def find_newest(
        unit_ptr, width, length, newest_ptr, cosine_ptr,
        SIMILAR: tl.constexpr, KEYS: tl.constexpr, OTHERS: tl.constexpr, COLUMNS: tl.constexpr,
    ):  # fmt: skip
        """KEYS keys of a head: the newest other one similar to each, -1 = none, and its cosine."""
        head = tl.program_id(1).to(tl.int64)
        unit_ptr += head * length * width
        key = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
        column = tl.arange(0, COLUMNS)
        own_ptr = unit_ptr + key.to(tl.int64)[:, None] * width + column[None, :]
        newest = tl.full([KEYS], -1, dtype=tl.int32)
        cosine = tl.zeros([KEYS], dtype=tl.float32)
        first = (length - 1) // OTHERS * OTHERS
        missing = tl.sum((key < length).to(tl.int32), 0)
        while (first >= 0) & (missing > 0):
            other = first + tl.arange(0, OTHERS)
            other_ptr = unit_ptr + other.to(tl.int64)[None, :] * width + column[:, None]
            cosines = tl.zeros([KEYS, OTHERS], dtype=tl.float32)
            for start in range(0, width, COLUMNS):
                # Beyond the length keys are 0, and similar to none.
                own = tl.load(own_ptr + start, mask=(key < length)[:, None], other=0.0)
                others = tl.load(other_ptr + start, mask=(other < length)[None, :], other=0.0)
                # What is similar is decided as in float32.
                cosines = tl.dot(own, others, cosines, input_precision="ieee")
            similar = (cosines > SIMILAR) & (other[None, :] != key[:, None])
            here = tl.max(tl.where(similar, other[None, :], -1), 1)
            of_here = tl.sum(tl.where(other[None, :] == here[:, None], cosines, 0.0), 1)
            cosine = tl.where(newest < 0, of_here, cosine)
            newest = tl.where(newest < 0, here, newest)
            missing = tl.sum(((newest < 0) & (key < length)).to(tl.int32), 0)
            first -= OTHERS
        tl.store(newest_ptr + head * length + key, newest, mask=key < length)
        tl.store(cosine_ptr + head * length + key, cosine, mask=key < length)

    @triton.jit(do_not_specialize=["length"])
    def average_rest(
        unit_ptr, width, length, total_ptr, newest_ptr, cosine_ptr, mean_ptr,
        KEYS: tl.constexpr, OTHERS: tl.constexpr, COLUMNS: tl.constexpr,
    ):  # fmt: skip
        """KEYS keys of a head: the mean of their cosines, but with themselves and with those whose newest they are."""
        head = tl.program_id(1).to(tl.int64)
        key = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
        column = tl.arange(0, COLUMNS)
        own_ptr = unit_ptr + (head * length + key)[:, None] * width + column[None, :]
        rest = tl.zeros([KEYS], dtype=tl.float32)
        for start in range(0, width, COLUMNS):
            own = tl.load(own_ptr + start, mask=(key < length)[:, None], other=0.0)
            total = tl.load(total_ptr + head * width + start + column)
            rest += tl.sum((total[None, :] - own) * own, 1)
        for first in range(0, length, OTHERS):
            other = first + tl.arange(0, OTHERS)
            newest = tl.load(newest_ptr + head * length + other, mask=other < length, other=-1)
            cosine = tl.load(cosine_ptr + head * length + other, mask=other < length, other=0.0)
            rest -= tl.sum(tl.where(newest[None, :] == key[:, None], cosine[None, :], 0.0), 1)
        tl.store(mean_ptr + head * length + key, rest / length, mask=key < length)
