"""Stage C: the nucleus of a flat row, which lies in too many groups for one program.

`bracket` estimates two values around the threshold from a sample of whole groups. `weigh_bracket` then reads the row
once on many programs: exact mass above the bracket, exact masses above points inside it, and the values inside it.
`nucleus_threshold` finishes exactly on those, or says that the estimate missed, which only costs time.
"""

import triton
import triton.language as tl

from adapt_kernels.ops.mode_sample.triton_gate import (
    AT_MODE,
    GROUP,
    INF,
    NEG_INF,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    gated,
    load_logits,
    open_row,
    row_float,
    row_integer,
    row_logits,
    tempered,
    with_listed_mass,
)
from adapt_kernels.ops.mode_sample.triton_threshold import lowest_kept

# A row's state, float64: the bracket's lower end (+inf = not a large nucleus) and upper end, the row's peak.
STATE = tl.constexpr(4)
# Standard deviations of the sampled mass between the estimate and each end of the bracket.
SAFETY = tl.constexpr(3.5)


@triton.jit
def sampled_bracket(y, mass_below, factor):
    """Ends of a bracket around the value below which `mass_below` lies; y is a sample of one in `factor` tokens."""
    weight = tl.exp(y)
    end = tl.arange(0, 2)
    safety = tl.where(end == 0, SAFETY, -SAFETY)
    low = tl.min(tl.where(y > NEG_INF, y, 0.0)) + tl.zeros([2], tl.float32)
    high = tl.zeros([2], tl.float32)
    for _ in range(20):
        middle = 0.5 * (low + high)
        under = tl.where(y[None, :] <= middle[:, None], weight[None, :], 0.0)
        estimate = factor * (tl.sum(under, 1) + safety * tl.sqrt(tl.sum(under * under, 1)))
        low = tl.where(estimate < mass_below, middle, low)
        high = tl.where(estimate < mass_below, high, middle)
    return tl.max(tl.where(end == 0, low, NEG_INF)), tl.max(tl.where(end == 1, high, NEG_INF))


@triton.jit(
    do_not_specialize=[
        "rows_per_batch", "num_classed", "num_classes", "num_groups", "shared", "temperature", "top_k", "top_p", "at_mode",
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
    source = row_logits(
        row, logits, batch_stride, row_stride, rows_per_batch, vocab_size,
        token_classes, num_classed, class_scale, class_bias, num_classes,
    )  # fmt: skip
    t = row_float(temperature_rows, temperature, row, shared, TEMPERATURE)
    k = row_integer(top_k_rows, top_k, row, shared, TOP_K)
    p = row_float(top_p_rows, top_p, row, shared, TOP_P)
    gate = row_integer(at_mode_rows, at_mode, row, shared, AT_MODE) != 0
    low = tl.full((), float("inf"), tl.float64)
    high = tl.zeros((), tl.float64)
    peak = high
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
        mass, top = with_listed_mass(
            masses * tl.exp(y_group), y_group, group, y_listed, index, mode_ids, NUM_MODES, OTHER
        )
        total = tl.sum(mass)
        # Small if a few groups hold the nucleus, as their maxima alone show at one of these points.
        point = (tl.arange(0, POINTS) + 1).to(tl.float64) * (-16.0 / POINTS)
        reached = top[None, :] >= point[:, None]
        carries = tl.sum(tl.where(reached, tl.exp(top)[None, :], 0.0), 1) >= p * total
        fewest = tl.min(tl.where(carries, tl.sum(reached.to(tl.int32), 1), num_groups))
        if (fewest > FEW) & (peak > NEG_INF) & (peak < INF):
            sampled = (tl.arange(0, FEW) * num_groups) // FEW
            columns = sampled[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
            x = load_logits(source, columns, columns < source.vocab_size)
            y = tempered(gated(x.to(tl.float64), shift), peak, t).to(tl.float32)
            factor = num_groups.to(tl.float32) / FEW
            below = ((1.0 - p) * total).to(tl.float32)
            lower, upper = sampled_bracket(tl.reshape(y, [FEW * GROUP]), below, factor)
            low = lower.to(tl.float64)
            high = upper.to(tl.float64)
    tl.store(state + row * STATE, low)
    tl.store(state + row * STATE + 1, high)
    tl.store(state + row * STATE + 2, peak)


@triton.jit(
    do_not_specialize=["rows_per_batch", "num_classed", "num_classes", "num_splits", "shared", "temperature", "at_mode"]
)  # fmt: skip
def weigh_bracket(
    logits, batch_stride: tl.int64, row_stride: tl.int64, rows_per_batch,
    vocab_size, token_classes, num_classed: tl.int32, class_scale, class_bias, num_classes: tl.int32,
    num_splits: tl.int32, mode_ids, bias, shared: tl.int32,
    temperature_rows, temperature: tl.int64, at_mode_rows, at_mode: tl.int32, state,
    split_mass,  # [N, splits, POINTS + 1] float64: mass above each point, and above the bracket
    split_count,  # [N, splits] int32: values inside the bracket
    split_logits,  # [N, splits, SEGMENT] float32: their logits, in column order; what does not fit is left out
    NUM_MODES: tl.constexpr, OTHER: tl.constexpr, GROUPS: tl.constexpr, POINTS: tl.constexpr, SEGMENT: tl.constexpr,
):  # fmt: skip
    """One program = GROUPS groups of one row; tokens that are modes of their own are left out, as in stage A."""
    row = (tl.program_id(0) // num_splits).to(tl.int64)
    split = tl.program_id(0) % num_splits
    low = tl.load(state + row * STATE)
    if low < INF:
        high = tl.load(state + row * STATE + 1)
        peak = tl.load(state + row * STATE + 2)
        source = row_logits(
        row, logits, batch_stride, row_stride, rows_per_batch, vocab_size,
        token_classes, num_classed, class_scale, class_bias, num_classes,
    )  # fmt: skip
        t = row_float(temperature_rows, temperature, row, shared, TEMPERATURE)
        gate = row_integer(at_mode_rows, at_mode, row, shared, AT_MODE) != 0
        columns = split * (GROUPS * GROUP) + tl.arange(0, GROUPS * GROUP)
        x = load_logits(source, columns, columns < source.vocab_size)
        shift = tl.zeros((), tl.float64)
        for i in tl.static_range(NUM_MODES):
            if i == OTHER:
                if bias is not None:
                    shift = tl.where(gate, tl.load(bias + row * NUM_MODES + i), 0.0)
            else:
                x = tl.where(columns == tl.load(mode_ids + i), NEG_INF, x)
        y = tempered(gated(x.to(tl.float64), shift), peak, t)
        slot = row * num_splits + split
        tl.store(split_mass + slot * (POINTS + 1) + POINTS, tl.sum(tl.where(y > high, tl.exp(y), 0.0)))
        inside = (y >= low) & (y <= high)
        position = tl.cumsum(inside.to(tl.int32), 0) - 1
        count = tl.sum(inside.to(tl.int32))
        split_logits += slot * SEGMENT
        tl.store(split_logits + position, x, mask=inside & (position < SEGMENT))
        tl.store(split_count + slot, count)
        tl.debug_barrier()
        listed = tl.arange(0, SEGMENT)
        x = tl.load(split_logits + listed, mask=listed < count, other=NEG_INF)
        y = tempered(gated(x.to(tl.float64), shift), peak, t)
        index = tl.arange(0, POINTS)
        point = bracket_points(low, high, index, POINTS)
        above = tl.sum(tl.where(y[None, :] > point[:, None], tl.exp(y)[None, :], 0.0), 1)
        tl.store(split_mass + slot * (POINTS + 1) + index, above)


@triton.jit
def bracket_points(low, high, index, POINTS: tl.constexpr):
    """POINTS values from the lower end of the bracket towards the upper."""
    return low + (high - low) * (index.to(tl.float64) / POINTS)


@triton.jit
def nucleus_threshold(
    p, total, row, state, split_mass, split_count, split_logits, num_splits, mode_ids, listed_y,
    shift, peak, temperature, values, weights,
    NUM_MODES: tl.constexpr, OTHER: tl.constexpr, CAPACITY: tl.constexpr, GROUPS: tl.constexpr, PIVOTS: tl.constexpr,
    POINTS: tl.constexpr, SEGMENT: tl.constexpr, SPLIT_SLOTS: tl.constexpr,
):  # fmt: skip
    """(True, threshold) of a row with a bracket, or (False, -inf) if the bracket missed it or overflowed."""
    low = tl.load(state + row * STATE)
    high = tl.load(state + row * STATE + 1)
    target = p * total
    index = tl.arange(0, POINTS)
    point = bracket_points(low, high, index, POINTS)
    split = tl.arange(0, SPLIT_SLOTS)
    slot = row * num_splits + split
    real = split < num_splits
    outside = tl.sum(tl.load(split_mass + slot * (POINTS + 1) + POINTS, mask=real, other=0.0))
    inside = tl.load(
        split_mass + slot[:, None] * (POINTS + 1) + index[None, :],
        mask=real[:, None] & (index >= 0)[None, :],
        other=0.0,
    )
    above = outside + tl.sum(inside, 0)
    counts = tl.load(split_count + slot, mask=real, other=0)
    for i in tl.static_range(NUM_MODES):
        if i != OTHER:
            own = tl.load(listed_y + i)
            outside += tl.where(own > high, tl.exp(own), 0.0)
            above += tl.where(own > point, tl.exp(own), 0.0)
    dropped = tl.max(tl.where(above >= target, point, NEG_INF))
    kept = tl.min(tl.where(above >= target, high, point))
    beyond = tl.max(tl.where(above >= target, outside, above))
    found = (outside < target) & (dropped > NEG_INF) & (tl.max(counts) <= SEGMENT)
    threshold = tl.full((), float("-inf"), tl.float64)
    if found:
        filled = 0
        for first in range(0, num_splits * SEGMENT, GROUPS * GROUP):
            entry = first + tl.arange(0, GROUPS * GROUP)
            inside_row = entry < num_splits * SEGMENT
            count = tl.load(split_count + row * num_splits + entry // SEGMENT, mask=inside_row, other=0)
            mask = inside_row & (entry % SEGMENT < count)
            x = tl.load(split_logits + row * num_splits * SEGMENT + entry, mask=mask, other=NEG_INF)
            y = tempered(gated(x.to(tl.float64), shift), peak, temperature)
            take = (y > dropped) & (y <= kept)
            position = filled + tl.cumsum(take.to(tl.int32), 0) - 1
            tl.store(values + position, y, mask=take & (position < CAPACITY))
            tl.store(weights + position, tl.exp(y), mask=take & (position < CAPACITY))
            filled += tl.sum(take.to(tl.int32))
        for i in tl.static_range(NUM_MODES):
            if i != OTHER:
                own = tl.load(listed_y + i)
                between = (own > dropped) & (own <= kept)
                tl.store(values + filled, own, mask=between & (filled < CAPACITY))
                tl.store(weights + filled, tl.exp(own), mask=between & (filled < CAPACITY))
                filled += tl.where(between, 1, 0)
        tl.debug_barrier()
        found = filled <= CAPACITY
        if found:
            lowest, _ = lowest_kept(
                True, target - beyond, filled, values, weights, values, values, 0, mode_ids, listed_y, 0.0, 0.0, 1.0,
                NUM_MODES, OTHER, False, GROUPS, PIVOTS,
            )  # fmt: skip
            # No value there at all: everything above is kept, and nothing lies between.
            threshold = tl.minimum(lowest, kept)
    return found, threshold
