"""Stage A: one read of the logits leaves four numbers per group of 128 columns, in 6 to 10 instructions per logit.

A warp holds its groups as [groups, 16] tiles with the columns of a thread side by side, so that almost nothing crosses
lanes; pairs of 16-bit logits stay one word until their exponential, which is one fused multiply-add and one ex2. What
that form gets wrong (NaN, +inf, overflow of peak / T, a cut last group, tokens that are modes of their own) makes a
group sick, and sick groups are done again, one at a time.
"""

import triton
import triton.language as tl

from adapt_kernels.ops.mode_sample.triton_classes import acts_on_row, tile_by_class
from adapt_kernels.ops.mode_sample.triton_gate import (
    AT_MODE,
    GROUP,
    INF,
    LOG2_E,
    NAN_UNIT,
    NEG_INF,
    RowLogits,
    fast_weights,
    load_logits,
    row_edits,
    row_integer,
    row_scale,
    row_start,
)
from adapt_kernels.ops.mode_sample.triton_words import columns_of, halves, load_columns, load_words

# Relative, of a group's mass where 1e-30 <= T <= 1e30: 2**-22 of ex2.approx, twice; the rounding of scale and argument,
# which at most 4 times 2**-24 of a sum is; ten additions.
MASS_ERROR = tl.constexpr(2e-6)
# Where |peak / T| stays below it, the rounding of that product moves an exponential by a factor of 2 at most.
LARGEST_SHIFT = tl.constexpr(16777216.0)


@triton.jit
def larger_bf16(a, b):
    """The larger of two pairs; a number wins over NaN, which shows in the mass."""
    return tl.inline_asm_elementwise("max.bf16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def smaller_bf16(a, b):
    """The smaller of two pairs."""
    return tl.inline_asm_elementwise("min.bf16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def larger_fp16(a, b):
    """As `larger_bf16`."""
    return tl.inline_asm_elementwise("max.f16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def smaller_fp16(a, b):
    """As `smaller_bf16`."""
    return tl.inline_asm_elementwise("min.f16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def flattened(tile):
    """The numbers of a tile in any order: reduced in a thread before they cross lanes."""
    return tl.reshape(tile, [tile.numel], can_reorder=True)


@triton.jit
def fused(a, b, c, FUSED: tl.constexpr):
    """a * b + c, rounded once; the interpreter's `tl.fma` rounds twice."""
    if FUSED:
        return tl.fma(a, b, c)
    else:
        return (a.to(tl.float64) * b.to(tl.float64) + c.to(tl.float64)).to(tl.float32)


@triton.jit
def mass_of(a0, a1, a2, a3, a4, a5, a6, a7, peak, scale, FUSED: tl.constexpr):
    """sum exp2((x - peak) * scale) over rows of 8 tiles [groups, 1], and if it can be trusted.

    exp2(x * scale - shift) with a rounded shift = peak * scale: every term is off by one factor, taken out of the sum.
    """
    shift = peak * scale
    minus = -shift
    total = tl.exp2(fused(a0, scale, minus, FUSED)) + tl.exp2(fused(a1, scale, minus, FUSED))
    total += tl.exp2(fused(a2, scale, minus, FUSED)) + tl.exp2(fused(a3, scale, minus, FUSED))
    total += tl.exp2(fused(a4, scale, minus, FUSED)) + tl.exp2(fused(a5, scale, minus, FUSED))
    total += tl.exp2(fused(a6, scale, minus, FUSED)) + tl.exp2(fused(a7, scale, minus, FUSED))
    mass = tl.sum(total, 1, keep_dims=True) * tl.exp2(-fused(peak, scale, -shift, FUSED))
    return mass, (mass == mass) & (tl.abs(shift) < LARGEST_SHIFT)


@triton.jit
def extremes(a0, a1, a2, a3, a4, a5, a6, a7):
    """(the largest of each row [groups, 1], the smallest of all); NaN is neither."""
    upper = tl.maximum(tl.maximum(a0, a1), tl.maximum(a2, a3))
    lower = tl.minimum(tl.minimum(a0, a1), tl.minimum(a2, a3))
    upper = tl.maximum(upper, tl.maximum(tl.maximum(a4, a5), tl.maximum(a6, a7)))
    lower = tl.minimum(lower, tl.minimum(tl.minimum(a4, a5), tl.minimum(a6, a7)))
    return tl.max(upper, 1, keep_dims=True), tl.min(flattened(lower))


@triton.jit
def redone(
    group, source, mode_ids, scale, all_equal, NUM_MODES: tl.constexpr, OTHER: tl.constexpr
):  # fmt: skip
    """Peak, mass, mass at T = 1 and count word of any group, with every care."""
    columns = group * GROUP + tl.arange(0, GROUP)
    inside = columns < source.vocab_size
    x = load_logits(source, columns, inside)
    loaded = tl.load(source.start + columns, mask=inside).to(tl.float32)
    nan = inside & (loaded != loaded)
    for i in tl.static_range(NUM_MODES):
        if i != OTHER:
            x = tl.where(columns == tl.load(mode_ids + i), NEG_INF, x)
    peak = tl.max(x)
    finite = tl.sum((x > NEG_INF).to(tl.int32))
    mass = tl.sum(fast_weights(x, peak, scale))
    mass = tl.where(all_equal, finite.to(tl.float32), mass)
    return peak, mass, tl.sum(fast_weights(x, peak, LOG2_E)), finite + NAN_UNIT * tl.sum(nan.to(tl.int32))


@triton.jit(
    do_not_specialize=[
        "rows_per_batch", "num_classed", "num_classes", "num_groups", "shared", "scale", "at_mode",
    ]
)  # fmt: skip
def group_statistics(
    num_groups: tl.int32, logits, batch_stride: tl.int64, row_stride: tl.int64, rows_per_batch,
    vocab_size, token_classes, num_classed: tl.int32, class_scale, class_bias, num_classes: tl.int32,
    mode_ids, bias, shared: tl.int32, temperature_rows, scale: tl.float32, at_mode_rows, at_mode: tl.int32,
    group_peak,  # [N, num_groups] float32: the largest logit
    group_mass,  # [N, num_groups] float32: sum exp((x - peak) / T)
    group_raw_mass,  # [N, num_groups] float32: sum exp(x - peak)
    group_count,  # [N, num_groups] int16: (finite logits) + NAN_UNIT * (NaN logits)
    NUM_MODES: tl.constexpr, OTHER: tl.constexpr, GROUPS: tl.constexpr,
    WORDS: tl.constexpr,  # 16-bit logits
    ALIGNED: tl.constexpr,  # whose rows begin at multiples of 16 bytes
    PACKED: tl.constexpr,  # NVIDIA's instructions for pairs of them
    FUSED: tl.constexpr,  # tl.fma rounds once
    CLASS_SLOTS: tl.constexpr,
):  # fmt: skip
    """One program = GROUPS groups of one row. Tokens listed in `mode_ids` are left out: the draw adds them exactly."""
    row = tl.program_id(0).to(tl.int64)
    # One column wide: a layout of their own would cost the conversions of every result.
    index = tl.arange(0, GROUPS)[:, None]
    # The last program moves back to the row's last whole groups: two programs write the same numbers.
    whole_groups = vocab_size // GROUP
    base = tl.minimum(tl.program_id(1) * GROUPS, whole_groups - GROUPS)
    group = base + index
    source = RowLogits(
        row_start(row, logits, batch_stride, row_stride, rows_per_batch), vocab_size, 0,
        token_classes, num_classed,
        row_edits(class_scale, row, num_classes), row_edits(class_bias, row, num_classes),
    )  # fmt: skip
    HALF: tl.constexpr = logits.dtype.element_ty == tl.float16
    if PACKED:
        w0, w1, w2, w3 = load_words(source, group, ALIGNED)
        a0, a1, a2, a3, a4, a5, a6, a7 = columns_of(w0, w1, w2, w3, HALF)
    else:
        a0, a1, a2, a3, a4, a5, a6, a7 = load_columns(source, group, WORDS, ALIGNED, HALF)
    if PACKED:
        if HALF:
            top = tl.reduce(larger_fp16(larger_fp16(w0, w1), larger_fp16(w2, w3)), 1, larger_fp16, keep_dims=True)
            low = tl.reduce(flattened(smaller_fp16(smaller_fp16(w0, w1), smaller_fp16(w2, w3))), 0, smaller_fp16)
        else:
            top = tl.reduce(larger_bf16(larger_bf16(w0, w1), larger_bf16(w2, w3)), 1, larger_bf16, keep_dims=True)
            low = tl.reduce(flattened(smaller_bf16(smaller_bf16(w0, w1), smaller_bf16(w2, w3))), 0, smaller_bf16)
        top0, top1 = halves(top, HALF)
        low0, low1 = halves(low, HALF)
        peak, lowest = tl.maximum(top0, top1), tl.minimum(low0, low1)
    else:
        peak, lowest = extremes(a0, a1, a2, a3, a4, a5, a6, a7)
    cut_by_class = group < 0
    if token_classes is not None:
        acts, all_act = acts_on_row(source, num_classes, CLASS_SLOTS)
        if acts:
            cut_by_class = (group * GROUP < num_classed) & ((group + 1) * GROUP > num_classed)
            a0, a1, a2, a3, a4, a5, a6, a7 = tile_by_class(
                a0, a1, a2, a3, a4, a5, a6, a7, source, group, all_act, WORDS
            )  # fmt: skip
            peak, lowest = extremes(a0, a1, a2, a3, a4, a5, a6, a7)

    scale = row_scale(temperature_rows, scale, row, shared)
    # An empty group weighs nothing, instead of NaN.
    level = tl.where(peak == NEG_INF, 0.0, peak)
    mass, trusted = mass_of(a0, a1, a2, a3, a4, a5, a6, a7, level, scale, FUSED)
    raw = mass
    raw_scale = tl.full((), LOG2_E, tl.float32)
    if scale != raw_scale:
        raw, raw_trusted = mass_of(a0, a1, a2, a3, a4, a5, a6, a7, level, raw_scale, FUSED)
        trusted = trusted & raw_trusted
    sick = (trusted == 0) | cut_by_class
    all_equal = False
    for i in tl.static_range(NUM_MODES):
        if i == OTHER:
            if bias is not None:
                # An infinite bias makes every other token equal, so only their number counts.
                gate = row_integer(at_mode_rows, at_mode, row, shared, AT_MODE) != 0
                all_equal = gate & (tl.load(bias + row * NUM_MODES + i) == INF)
        else:
            sick = sick | (group == tl.load(mode_ids + i) // GROUP)
    slot = row * num_groups + group
    count = tl.full([GROUPS, 1], 0, tl.int32) + GROUP
    if lowest == NEG_INF:
        finite = (a0 > NEG_INF).to(tl.int32) + (a1 > NEG_INF).to(tl.int32) + (a2 > NEG_INF).to(tl.int32)
        finite += (a3 > NEG_INF).to(tl.int32) + (a4 > NEG_INF).to(tl.int32) + (a5 > NEG_INF).to(tl.int32)
        count = tl.sum(finite + (a6 > NEG_INF).to(tl.int32) + (a7 > NEG_INF).to(tl.int32), 1, keep_dims=True)
    if all_equal:
        mass = count.to(tl.float32)
    tl.store(group_peak + slot, peak)
    tl.store(group_mass + slot, mass)
    tl.store(group_count + slot, count.to(tl.int16))
    tl.store(group_raw_mass + slot, raw)
    # GROUPS: the cut group after the row's last whole one.
    end = tl.where((base + GROUPS == whole_groups) & (num_groups > whole_groups), GROUPS, GROUPS + 1)
    # The first sick group, or that cut one.
    first = tl.minimum(tl.min(flattened(tl.where(sick, index, GROUPS + 1))), end)
    while first <= GROUPS:
        # What was stored of a sick group is written over.
        tl.debug_barrier()
        here = row * num_groups + base + first
        one_peak, one_mass, one_raw, one_count = redone(
            base + first, source, mode_ids, scale, all_equal, NUM_MODES, OTHER
        )  # fmt: skip
        tl.store(group_peak + here, one_peak)
        tl.store(group_mass + here, one_mass)
        tl.store(group_count + here, one_count.to(tl.int16))
        tl.store(group_raw_mass + here, one_raw)
        later = tl.min(flattened(tl.where(sick & (index > first), index, GROUPS + 1)))
        first = tl.where(first < GROUPS, tl.minimum(later, end), GROUPS + 1)


@triton.jit(
    do_not_specialize=[
        "rows_per_batch", "vocab_size", "num_classed", "num_classes", "shared", "scale", "at_mode",
    ]
)  # fmt: skip
def short_row_statistics(
    logits, batch_stride: tl.int64, row_stride: tl.int64, rows_per_batch,
    vocab_size: tl.int32, token_classes, num_classed: tl.int32, class_scale, class_bias, num_classes: tl.int32,
    mode_ids, bias, shared: tl.int32, temperature_rows, scale: tl.float32, at_mode_rows, at_mode: tl.int32,
    group_peak, group_mass, group_raw_mass, group_count,
    NUM_MODES: tl.constexpr, OTHER: tl.constexpr,
):  # fmt: skip
    """`group_statistics` of rows of less than a group, one per program."""
    row = tl.program_id(0).to(tl.int64)
    source = RowLogits(
        row_start(row, logits, batch_stride, row_stride, rows_per_batch), vocab_size, 0,
        token_classes, num_classed,
        row_edits(class_scale, row, num_classes), row_edits(class_bias, row, num_classes),
    )  # fmt: skip
    all_equal = False
    if (OTHER >= 0) & (bias is not None):
        gate = row_integer(at_mode_rows, at_mode, row, shared, AT_MODE) != 0
        all_equal = gate & (tl.load(bias + row * NUM_MODES + OTHER) == INF)
    scale = row_scale(temperature_rows, scale, row, shared)
    peak, mass, raw, count = redone(0, source, mode_ids, scale, all_equal, NUM_MODES, OTHER)
    tl.store(group_peak + row, peak)
    tl.store(group_mass + row, mass)
    tl.store(group_raw_mass + row, raw)
    tl.store(group_count + row, count.to(tl.int16))
