"""mode_sample on Triton: one read of the logits, exact thresholds without a sort, O(V / 128) random numbers per row.

A  `group_statistics`, many programs per row: per group of 128 columns the maximum, sum exp((x - max) / T), the same at
   T = 1, and counts of finite and NaN logits. Reads every logit once, writes 14 bytes per group.
B  `draw`, one program per row: gates the group maxima, finds the threshold of top-k and top-p from the groups that can
   hold a survivor, reads those again (kept mass per group), draws a group, then a token in it, writes all outputs.
C  only where the host cannot rule out a top-p over the whole row: `bracket` (one program per row) samples 64 groups of
   a row whose nucleus is large, `weigh_bracket` (many programs) reads that row a second time, and B needs no group of
   it again but those with logits inside the bracket. Both leave at once otherwise.

So 2 launches, or 4 with C, chosen from host values only; no host sync, nothing depends on the batch, and all numbers
(rows, k, p, T, seed, step) are run-time values: a new kernel is compiled per dtype, vocabulary size class and set of
modes. Bytes per logit of a bfloat16 row: 2.2 without a large nucleus, 4.8 with one (A, C, and a fifth of it in B).

Exactness. A threshold is a value v with less than k tokens, or less than p of the mass, strictly above it. Values are
compared in float64 after the reference's own two roundings, so ties are the reference's ties. What is read of every
logit is summed in float32 (1/T multiplies), with a bound on its error; candidates are summed in float64 in a fixed
order. Where the bound leaves a comparison open (rows of distinct float32 logits, few others), the row's masses are
summed up again in float64. The bounds that skip groups (see triton_threshold) hold for any logits; a bracket of C that
missed is dropped for a search over the listed groups.
"""

import functools
import math
import struct
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch

from adapt_kernels.ops.mode_sample.arguments import ROW_ARGUMENTS, Rows
from adapt_kernels.ops.mode_sample.result import ModeSample
from adapt_kernels.ops.mode_sample.triton_workspace import (
    Nucleus,
    empty_candidates,
    empty_nucleus,
    empty_result,
    empty_statistics,
)
from adapt_kernels.philox import GROUP_SIZE
from adapt_kernels.triton_driver import OPTIONS

try:
    import triton

    from adapt_kernels.ops.mode_sample.triton_draw import draw
    from adapt_kernels.ops.mode_sample.triton_nucleus import bracket, weigh_bracket
    from adapt_kernels.ops.mode_sample.triton_read import group_statistics, short_row_statistics
except ModuleNotFoundError:
    triton = None

# Below it, differences of logits may overflow when tempered, which drops tokens: the kernels' TINY_TEMPERATURE.
_SMALLEST_SAFE_TEMPERATURE = 1e-37


@dataclass(frozen=True)
class Config:
    """Block sizes; all powers of two. Results do not depend on the batch, whatever they are."""

    # Groups per program of the read, which is one warp; up to `few_rows` rows smaller ones, 149 of a row of 151936. A
    # group's bits are the same in both: its columns lie in the same lanes.
    read_groups: int = 32
    few_rows: int = 32
    few_rows_read_groups: int = 8
    # With token classes, whose tables take registers.
    class_read_groups: int = 16
    # Groups per step of the finishing program's loops over listed groups.
    draw_groups: int = 2
    draw_warps: int = 8
    # Without filters the finishing program only works on one value per group.
    plain_draw_warps: int = 16
    # Candidates of top-k and top-p that are kept in a buffer; beyond it the listed groups are read again each round.
    capacity: int = 8192
    # A nucleus that fits this many groups is small; larger ones are sampled in as many groups.
    few_groups: int = 64


_DEFAULT = Config()


def mode_sample(rows: Rows, config: Config = _DEFAULT) -> ModeSample:
    """See `adapt_kernels.mode_sample`."""
    if rows.logits.dtype == torch.float64:
        raise ValueError("logits must be float32, bfloat16 or float16 here; float64 needs backend='reference'")
    out = empty_result(rows)
    if rows.count == 0:
        return out
    device = rows.logits.device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        _launch(rows, config, out)
    return out


def _launch(rows: Rows, config: Config, out: ModeSample) -> None:
    device, vocab_size = rows.logits.device, rows.logits.shape[-1]
    num_groups = triton.cdiv(vocab_size, GROUP_SIZE)
    modes = _mode_layout(rows.mode_ids, vocab_size, device)
    place = (*_row_places(rows.logits), vocab_size, *_class_edits(rows))
    argument, shared = _row_arguments(rows)
    bias = (modes.ids, rows.bias)
    statistics = empty_statistics(rows.count, num_groups, device)
    constants = {"NUM_MODES": len(rows.mode_ids), "OTHER": modes.other}
    slots = _slots(rows, num_groups, config)
    read = _read_options(rows, config)
    few = (*place, *bias, shared, argument["temperature"][0], _scale(rows.temperature), *argument["at_mode"])
    if vocab_size < GROUP_SIZE:
        short_row_statistics[(rows.count,)](*few, *statistics, **constants, num_warps=1, **OPTIONS)
    else:
        grid = (rows.count, triton.cdiv(vocab_size // GROUP_SIZE, read["GROUPS"]))
        group_statistics[grid](num_groups, *few, *statistics, **constants, **read, num_warps=1, **OPTIONS)
    nucleus = Nucleus(*(None,) * 6)
    if _may_weigh_rows(rows) and num_groups > config.few_groups:
        nucleus = empty_nucleus(rows.count, num_groups, slots["CAPACITY"], device)
        filters = chain(*(argument[name] for name in ("temperature", "top_k", "top_p", "at_mode")))
        bracket[(rows.count,)](
            *place, num_groups, *bias, shared, *filters, *statistics[:2], nucleus.state, **constants,
            ONLY_MODES=rows.only_modes, MODE_SLOTS=slots["MODE_SLOTS"], GROUP_SLOTS=slots["GROUP_SLOTS"],
            FEW=config.few_groups, POINTS=8, num_warps=config.draw_warps, **OPTIONS,
        )  # fmt: skip
        packed = _compares_pairs(rows, read["WORDS"])
        weigh_bracket[grid](
            *place, num_groups, modes.ids, shared, argument["temperature"][0], _scale(rows.temperature),
            statistics[0], *nucleus[:4], **constants, **(read | {"PACKED": packed}), num_warps=1, **OPTIONS,
        )  # fmt: skip
    draw[(rows.count,)](
        *place, num_groups, *bias, modes.fallback, shared, *chain(*argument.values()),
        *statistics, *empty_candidates(rows.count, num_groups, slots, device), *nucleus, *out,
        **constants, **slots, ONLY_MODES=rows.only_modes, GROUPS=config.draw_groups, WORDS=read["WORDS"],
        CHUNK=256, **_draw_options(rows, bool(slots["FILTERS"]), config), **OPTIONS,
    )  # fmt: skip


def _read_options(rows: Rows, config: Config) -> dict:
    """How stage A, and with it stage C, holds a row's groups."""
    most = config.read_groups if rows.token_classes is None else config.class_read_groups
    most = config.few_rows_read_groups if rows.count <= config.few_rows else most
    words = rows.logits.element_size() == 2
    whole_groups = rows.logits.shape[-1] // GROUP_SIZE
    return {
        "GROUPS": min(most, 1 << max(whole_groups.bit_length() - 1, 0)),
        "WORDS": words,
        "ALIGNED": _are_aligned(rows.logits),
        "PACKED": words and _compiles_for_nvidia(),
        "FUSED": not triton.knobs.runtime.interpret,
        "CLASS_SLOTS": _class_slots(rows),
    }


class _ModeLayout(NamedTuple):
    ids: torch.Tensor | None  # int32 [M], -1 = any other token
    other: int  # index of the any-other mode, -1 = none
    fallback: int  # the token of a restricted row without a finite logit


@functools.lru_cache(maxsize=64)
def _mode_layout(mode_ids, vocab_size: int, device: torch.device) -> _ModeLayout:
    """Cached: a copy to the device per call would forbid graph capture."""
    if not mode_ids:
        return _ModeLayout(None, -1, 0)
    fallback = 0 if None in mode_ids else min(mode_ids)
    left = set(range(vocab_size)) - set(mode_ids) if vocab_size <= len(mode_ids) else ()
    if None in mode_ids and len(left) == 1:
        # "Any other" is one token: as a listed token it needs no case of its own.
        mode_ids = tuple(min(left) if i is None else i for i in mode_ids)
    ids = torch.tensor([-1 if i is None else i for i in mode_ids], dtype=torch.int32, device=device)
    return _ModeLayout(ids, mode_ids.index(None) if None in mode_ids else -1, fallback)


def _row_arguments(rows: Rows) -> tuple[dict[str, tuple], int]:
    """(tensor or None, number) of every row argument in the kernels' order, and the bits of one-element tensors."""
    pairs: dict[str, tuple] = {}
    shared = 0
    for bit, name in enumerate(ROW_ARGUMENTS):  # see triton_gate
        value = getattr(rows, name)
        if not torch.is_tensor(value):
            pairs[name] = None, _word(value)
            continue
        if value.stride(0) == 0:
            shared |= 1 << bit
        elif value.stride(0) != 1:
            value = value.contiguous()
        pairs[name] = value, 0
    return pairs, shared


def _word(value) -> int:
    """A number as a signed 64-bit integer: the bits of a float (a float argument would be rounded to float32)."""
    if isinstance(value, float):
        return struct.unpack("<q", struct.pack("<d", value))[0]
    return (int(value) + 2**63) % 2**64 - 2**63


def _scale(temperature) -> float:
    """log2(e) / T, or what stands in where the kernel reads one per row: finite and positive, as `fast_scale`."""
    if torch.is_tensor(temperature):
        return 0.0
    return min(max(math.log2(math.e) / (temperature or 1.0), 1.2e-38), 3e38)


def _has_filters(rows: Rows) -> bool:
    """Whether a filter may act on some row, as far as the host knows."""
    off = (
        not torch.is_tensor(rows.top_k) and not 0 < rows.top_k < rows.logits.shape[-1],
        not torch.is_tensor(rows.top_p) and rows.top_p >= 1,
        not torch.is_tensor(rows.min_p) and rows.min_p <= 0,
        not torch.is_tensor(rows.temperature) and not 0 < rows.temperature < _SMALLEST_SAFE_TEMPERATURE,
    )
    return not all(off)


def _may_weigh_rows(rows: Rows) -> bool:
    """Whether top-p may act on a whole row, as far as the host knows: its masses decide then."""
    by_rank = not torch.is_tensor(rows.top_k) and 0 < rows.top_k < rows.logits.shape[-1]
    by_mass = torch.is_tensor(rows.top_p) or rows.top_p < 1
    return by_mass and not by_rank


def _row_places(logits: torch.Tensor) -> tuple:
    """Logits, strides and rows per batch for `row_start`; rows at one stride need no division (None)."""
    batches, rows = logits.shape[:2]
    if rows == 1 or batches == 1 or logits.stride(0) == rows * logits.stride(1):
        return logits, 0, logits.stride(0 if rows == 1 else 1), None
    return logits, logits.stride(0), logits.stride(1), rows


def _draw_options(rows: Rows, filters: bool, config: Config) -> dict[str, int]:
    """With filters two programs share a multiprocessor, where the compiler can be held to the registers for it: with
    modes, or before sm_90, it would spill. Left alone it may, so it is always told."""
    if not filters:
        return {"num_warps": config.plain_draw_warps}
    if not _compiles_for_nvidia():
        return {"num_warps": config.draw_warps}
    held = not rows.mode_ids and _has_packed_comparisons()
    return {"num_warps": config.draw_warps, "maxnreg": 65536 // (2 * 32 * config.draw_warps) if held else 255}


def _class_edits(rows: Rows) -> tuple:
    """What `RowLogits` needs to edit logits by class, on rows of which no row does."""
    if rows.token_classes is None or rows.class_scale is None or rows.class_bias is None:
        return None, 0, None, None, 0
    classes, scale, bias = (x.contiguous() for x in (rows.token_classes, rows.class_scale, rows.class_bias))
    # Read in pairs.
    classes = classes.clone() if classes.data_ptr() % 16 else classes
    return classes, len(classes), scale, bias, scale.shape[1]


def _class_slots(rows: Rows) -> int:
    """0: no edits. In sizes of 32, a warp: a class more seldom compiles anew."""
    return 0 if rows.class_scale is None else max(32, triton.next_power_of_2(rows.class_scale.shape[1]))


def _are_aligned(logits: torch.Tensor) -> bool:
    """Whether every row begins at a multiple of 16 bytes."""
    size = logits.element_size()
    return logits.data_ptr() % 16 == 0 and all(stride * size % 16 == 0 for stride in logits.stride()[:2])


def _compiles_for_nvidia() -> bool:
    """Neither for the interpreter nor for AMD."""
    return not triton.knobs.runtime.interpret and triton.runtime.driver.active.get_current_target().backend == "cuda"


def _compares_pairs(rows: Rows, words: bool) -> bool:
    """Logits as they lie in memory, and instructions for two of them."""
    return words and rows.token_classes is None and _compiles_for_nvidia() and _has_packed_comparisons()


def _has_packed_comparisons() -> bool:
    """From sm_90 on."""
    return triton.runtime.driver.active.get_current_target().arch >= 90


def _mode_slots(num_modes: int) -> int:
    return triton.next_power_of_2(max(num_modes, 2))


def _group_slots(num_groups: int) -> int:
    return triton.next_power_of_2(max(num_groups, 2))


def _slots(rows: Rows, num_groups: int, config: Config) -> dict[str, int]:
    """Array sizes of the finishing kernel, powers of two."""
    groups = _group_slots(num_groups)
    return {
        "MODE_SLOTS": _mode_slots(len(rows.mode_ids)),
        "FILTERS": _has_filters(rows),
        "GROUP_SLOTS": groups,
        "CAPACITY": max(config.capacity, groups),
    }
