"""Stage C: the nucleus of a flat row, which lies in too many groups for one program.

`bracket` estimates two logits around the threshold from a sample of whole groups. `weigh_bracket` then reads the row
once on many programs: kept mass and count of every group above the bracket, and where the logits inside it are.
`draw` finishes on those, or finds that the estimate missed, which only costs time.
"""

import triton
import triton.language as tl

from adapt_kernels.ops.mode_sample.triton_classes import acts_on_row, tile_by_class
from adapt_kernels.ops.mode_sample.triton_gate import (
    AT_MODE,
    GROUP,
    INF,
    NEG_INF,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    RowLogits,
    fast_scale,
    fast_weights,
    load_logits,
    open_row,
    row_edits,
    row_float,
    row_integer,
    row_scale,
    row_start,
    with_listed_mass,
)
from adapt_kernels.ops.mode_sample.triton_read import LARGEST_SHIFT, mass_of
from adapt_kernels.ops.mode_sample.triton_words import halves, load_columns, load_words

# A row's state, float32: the bracket's ends, logits of the row; the lower is +inf where the nucleus is not large.
STATE = tl.constexpr(2)
# Standard deviations of the sampled mass between the estimate and each end of the bracket.
SAFETY = tl.constexpr(3.5)
# Of eight logits that a thread holds side by side; a group's word is (kept) + BLOCK_UNIT * (blocks with candidates).
BLOCKS = tl.constexpr(16)
BLOCK_UNIT = tl.constexpr(256)


@triton.jit
def sampled_bracket(x, peak, scale, mass_below, factor):
    """Ends of a bracket around the logit below which `mass_below` lies; x is a sample of one in `factor` tokens.

    The upper end is +inf where the sample says too little."""
    weight = fast_weights(x, peak, scale)
    end = tl.arange(0, 2)
    safety = tl.where(end == 0, SAFETY, -SAFETY)
    low = tl.min(tl.where(x > NEG_INF, x, peak)) + tl.zeros([2], tl.float32)
    high = peak + tl.zeros([2], tl.float32)
    for _ in range(14):
        middle = 0.5 * (low + high)
        under = tl.where(x[None, :] <= middle[:, None], weight[None, :], 0.0)
        estimate = factor * (tl.sum(under, 1) + safety * tl.sqrt(tl.sum(under * under, 1)))
        low = tl.where(estimate < mass_below, middle, low)
        high = tl.where(estimate < mass_below, high, middle)
    # Logits of the sample: they lose nothing in the logits' own type.
    lower = tl.max(tl.where(end == 0, low, NEG_INF))
    upper = tl.max(tl.where(end == 1, high, NEG_INF))
    return tl.max(tl.where(x <= lower, x, NEG_INF)), tl.min(tl.where(x >= upper, x, INF))


@triton.jit(
    do_not_specialize=[
        "rows_per_batch", "num_classed", "num_classes", "num_groups", "shared", "temperature", "top_k", "top_p",
        "at_mode",
    ]
)  # fmt: skip
def bracket(
    logits, batch_stride: tl.int64, row_stride: tl.int64, rows_per_batch,
    vocab_size, token_classes, num_classed: tl.int32, class_scale, class_bias, num_classes: tl.int32,
    num_groups: tl.int32, mode_ids, bias, shared: tl.int32,
    temperature_rows, temperature: tl.int64, top_k_rows, top_k: tl.int64, top_p_rows, top_p: tl.int64,
    at_mode_rows, at_mode: tl.int32, group_peak, group_mass, state,
    NUM_MODES: tl.constexpr, MODE_SLOTS: tl.constexpr, OTHER: tl.constexpr, ONLY_MODES: tl.constexpr,
    GROUP_SLOTS: tl.constexpr, FEW: tl.constexpr, POINTS: tl.constexpr,
):  # fmt: skip
    """One program per row: is its nucleus large, and if so, roughly where does it end?"""
    row = tl.program_id(0).to(tl.int64)
    source = RowLogits(
        row_start(row, logits, batch_stride, row_stride, rows_per_batch), vocab_size, 0,
        token_classes, num_classed,
        row_edits(class_scale, row, num_classes), row_edits(class_bias, row, num_classes),
    )  # fmt: skip
    t = row_float(temperature_rows, temperature, row, shared, TEMPERATURE)
    k = row_integer(top_k_rows, top_k, row, shared, TOP_K)
    p = row_float(top_p_rows, top_p, row, shared, TOP_P)
    gate = row_integer(at_mode_rows, at_mode, row, shared, AT_MODE) != 0
    low = tl.full((), float("inf"), tl.float32)
    high = tl.zeros((), tl.float32)
    filtered = (p < 1.0) & ((k <= 0) | (k >= vocab_size)) & (t > 0.0)
    if ONLY_MODES:
        filtered = filtered & (gate == 0)
    if filtered:
        _, masses, y_group, _, y_listed, shift, peak = open_row(
            source, row, group_peak, group_mass, num_groups, mode_ids, bias, gate, t,
            NUM_MODES, MODE_SLOTS, OTHER, ONLY_MODES, GROUP_SLOTS,
        )  # fmt: skip
        group = tl.arange(0, GROUP_SLOTS)
        index = tl.arange(0, MODE_SLOTS)
        weight = tl.exp(y_group)
        mass, top = with_listed_mass(masses * weight, y_group, group, y_listed, index, mode_ids, NUM_MODES, OTHER)
        total = tl.sum(mass)
        # Small if a few groups hold the nucleus, as their maxima alone show at one of these points.
        y_top, carried = top.to(tl.float32), tl.exp(top).to(tl.float32)
        point = (tl.arange(0, POINTS) + 1).to(tl.float32) * (-16.0 / POINTS)
        reached = y_top[None, :] >= point[:, None]
        carries = tl.sum(tl.where(reached, carried[None, :], 0.0), 1) >= (p * total).to(tl.float32)
        fewest = tl.min(tl.where(carries, tl.sum(reached.to(tl.int32), 1), num_groups))
        scale = fast_scale(t)
        # The peak among logits that only the bias of any other token shifts.
        level = (peak - shift).to(tl.float32)
        if fewest > FEW:
            sampled = (tl.arange(0, FEW) * num_groups) // FEW
            columns = sampled[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
            x = load_logits(source, columns, columns < vocab_size)
            factor = num_groups.to(tl.float32) / FEW
            below = ((1.0 - p) * total).to(tl.float32)
            low, high = sampled_bracket(tl.reshape(x, [FEW * GROUP]), level, scale, below, factor)
            largest = tl.maximum(tl.abs(low), tl.abs(level))
            low = tl.where(largest * scale < 0.5 * LARGEST_SHIFT, low, INF)
    tl.store(state + row * STATE, low)
    tl.store(state + row * STATE + 1, high)


@triton.jit
def above_bf16(a, b):
    """Halves of a pair that are larger: 0xFFFF, else 0; NaN is not."""
    return tl.inline_asm_elementwise(
        "set.gt.u32.bf16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def above_fp16(a, b):
    """As `above_bf16`."""
    return tl.inline_asm_elementwise(
        "set.gt.u32.f16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def reaches_bf16(a, b):
    """Halves of a pair that are as large."""
    return tl.inline_asm_elementwise(
        "set.ge.u32.bf16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def reaches_fp16(a, b):
    """As `reaches_bf16`."""
    return tl.inline_asm_elementwise(
        "set.ge.u32.f16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def pair_of(number, HALF: tl.constexpr):
    """A logit twice in a word."""
    if HALF:
        bits = number.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    else:
        bits = number.to(tl.int32, bitcast=True) >> 16 & 0xFFFF
    return bits | (bits << 16)


@triton.jit
def split_words(words, low, high, HALF: tl.constexpr):
    """(the logits of a word above `high`, -inf for others; masks of those, and of those from `low` on)."""
    if HALF:
        above, reaches = above_fp16(words, high), reaches_fp16(words, low)
    else:
        above, reaches = above_bf16(words, high), reaches_bf16(words, low)
    nothing = pair_of(tl.full((), float("-inf"), tl.float32), HALF)
    a, b = halves((words & above) | (~above & nothing), HALF)
    return a, b, above, reaches


@triton.jit
def split_pair(a, b, low, high):
    """`split_words` of two tiles, with counts for masks."""
    above_a, above_b = a > high, b > high
    above = above_a.to(tl.int32) + above_b.to(tl.int32)
    reaches = (a >= low).to(tl.int32) + (b >= low).to(tl.int32)
    return tl.where(above_a, a, NEG_INF), tl.where(above_b, b, NEG_INF), above, reaches


@triton.jit
def count_of_masks(total):
    """How many halves were set in words of masks whose sum, as int32, is `total`."""
    low = -total & 0xFFFF
    return 2 * low - ((total + low) >> 16)


@triton.jit
def mass_level(peak, low, high):
    """The logit that the masses of groups above the bracket are relative to: at most one of theirs, where any is."""
    return tl.maximum(peak, tl.where(high < INF, high, low))


@triton.jit
def weigh_one(group, low, high, level, scale, source, mode_ids, NUM_MODES: tl.constexpr, OTHER: tl.constexpr):
    """Mass and count above the bracket, and whether any logit may be inside it, of any group, with every care."""
    columns = group * GROUP + tl.arange(0, GROUP)
    x = load_logits(source, columns, columns < source.vocab_size)
    for i in tl.static_range(NUM_MODES):
        if i != OTHER:
            x = tl.where(columns == tl.load(mode_ids + i), NEG_INF, x)
    mass = tl.sum(tl.where(x > high, fast_weights(x, level, scale), 0.0))
    return mass, tl.sum((x > high).to(tl.int32)), tl.max(((x >= low) & (x <= high)).to(tl.int32))


@triton.jit(
    do_not_specialize=["rows_per_batch", "num_classed", "num_classes", "num_groups", "shared", "scale"]
)  # fmt: skip
def weigh_bracket(
    logits, batch_stride: tl.int64, row_stride: tl.int64, rows_per_batch,
    vocab_size, token_classes, num_classed: tl.int32, class_scale, class_bias, num_classes: tl.int32,
    num_groups: tl.int32, mode_ids, shared: tl.int32, temperature_rows, scale: tl.float32, group_peak, state,
    group_above,  # [N, num_groups] float32: sum exp((x - `mass_level`) / T) above it
    group_word,  # [N, num_groups] int32
    blocks,  # [N, num_groups, BLOCKS] uint8: which hold logits inside the bracket
    NUM_MODES: tl.constexpr, OTHER: tl.constexpr, GROUPS: tl.constexpr, WORDS: tl.constexpr,
    ALIGNED: tl.constexpr, PACKED: tl.constexpr, FUSED: tl.constexpr, CLASS_SLOTS: tl.constexpr,
):  # fmt: skip
    """One program = GROUPS groups of one row; tokens that are modes of their own are left out, as in stage A."""
    row = tl.program_id(0).to(tl.int64)
    low = tl.load(state + row * STATE)
    if low < INF:
        high = tl.load(state + row * STATE + 1)
        source = RowLogits(
            row_start(row, logits, batch_stride, row_stride, rows_per_batch), vocab_size, 0,
            token_classes, num_classed,
            row_edits(class_scale, row, num_classes), row_edits(class_bias, row, num_classes),
        )  # fmt: skip
        whole_groups = vocab_size // GROUP
        base = tl.minimum(tl.program_id(1) * GROUPS, whole_groups - GROUPS)
        group = base + tl.arange(0, GROUPS)[:, None]
        lane = tl.arange(0, 16)[None, :]
        scale = row_scale(temperature_rows, scale, row, shared)
        slot = row * num_groups + group
        level = mass_level(tl.load(group_peak + slot), low, high)
        HALF: tl.constexpr = logits.dtype.element_ty == tl.float16
        cut_by_class = num_groups
        if PACKED:
            w0, w1, w2, w3 = load_words(source, group, ALIGNED)
            low_pair, high_pair = pair_of(low, HALF), pair_of(high, HALF)
            a0, a1, n0, r0 = split_words(w0, low_pair, high_pair, HALF)
            a2, a3, n1, r1 = split_words(w1, low_pair, high_pair, HALF)
            a4, a5, n2, r2 = split_words(w2, low_pair, high_pair, HALF)
            a6, a7, n3, r3 = split_words(w3, low_pair, high_pair, HALF)
            count = count_of_masks(tl.sum(n0 + n1 + n2 + n3, 1, keep_dims=True))
        else:
            a0, a1, a2, a3, a4, a5, a6, a7 = load_columns(source, group, WORDS, ALIGNED, HALF)
            if token_classes is not None:
                acts, all_act = acts_on_row(source, num_classes, CLASS_SLOTS)
                if acts:
                    cut_by_class = tl.where(num_classed % GROUP > 0, num_classed // GROUP, num_groups)
                    a0, a1, a2, a3, a4, a5, a6, a7 = tile_by_class(
                        a0, a1, a2, a3, a4, a5, a6, a7, source, group, all_act, WORDS
                    )  # fmt: skip
            a0, a1, n0, r0 = split_pair(a0, a1, low, high)
            a2, a3, n1, r1 = split_pair(a2, a3, low, high)
            a4, a5, n2, r2 = split_pair(a4, a5, low, high)
            a6, a7, n3, r3 = split_pair(a6, a7, low, high)
            count = tl.sum(n0 + n1 + n2 + n3, 1, keep_dims=True)
        for i in tl.static_range(NUM_MODES):
            if i != OTHER:
                own = tl.load(mode_ids + i)
                if (own // GROUP >= base) & (own // GROUP < base + GROUPS):
                    place = own % GROUP
                    here = (group == own // GROUP) & (lane == ((place // 2) % 16 if WORDS else place % 16))
                    tile = 2 * (place // 32) + place % 2 if WORDS else place // 16
                    counted = load_logits(source, own + group * 0, group >= 0) > high
                    count -= ((group == own // GROUP) & counted).to(tl.int32)
                    a0, a1 = tl.where(here & (tile == 0), NEG_INF, a0), tl.where(here & (tile == 1), NEG_INF, a1)
                    a2, a3 = tl.where(here & (tile == 2), NEG_INF, a2), tl.where(here & (tile == 3), NEG_INF, a3)
                    a4, a5 = tl.where(here & (tile == 4), NEG_INF, a4), tl.where(here & (tile == 5), NEG_INF, a5)
                    a6, a7 = tl.where(here & (tile == 6), NEG_INF, a6), tl.where(here & (tile == 7), NEG_INF, a7)
        mass, _ = mass_of(a0, a1, a2, a3, a4, a5, a6, a7, level, scale, FUSED)
        inside = (n0 + n1 + n2 + n3 != r0 + r1 + r2 + r3).to(tl.int32)
        position = tl.cumsum(inside, 1) - inside
        tl.store(blocks + slot * BLOCKS + position, (lane + group * 0).to(tl.uint8), mask=inside != 0)
        tl.store(group_above + slot, mass)
        tl.store(group_word + slot, count + BLOCK_UNIT * tl.sum(inside, 1, keep_dims=True))
        # What whole tiles cannot do: the cut group after the row's last whole one, and where the classed ids end.
        for which in range(2):
            single = tl.where(which == 0, cut_by_class, tl.where(num_groups > whole_groups, whole_groups, -1))
            mine = (single >= base) & (single < base + GROUPS + (base + GROUPS == whole_groups).to(tl.int32) * which)
            if mine & (single < num_groups):
                tl.debug_barrier()
                here = row * num_groups + single
                own_level = mass_level(tl.load(group_peak + here), low, high)
                one_mass, one_count, some = weigh_one(
                    single, low, high, own_level, scale, source, mode_ids, NUM_MODES, OTHER
                )  # fmt: skip
                block = tl.arange(0, BLOCKS)
                tl.store(blocks + here * BLOCKS + block, block.to(tl.uint8))
                tl.store(group_above + here, one_mass)
                tl.store(group_word + here, one_count + BLOCK_UNIT * BLOCKS * some)
