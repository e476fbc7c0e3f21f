"""Stage A where a nucleus of the whole row compares masses: they are float64 here, and triton_read is the fast form."""

import triton
import triton.language as tl

from adapt_kernels.ops.mode_sample.triton_gate import (
    AT_MODE,
    GROUP,
    INF,
    LOG2_E,
    NEG_INF,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    fast_scale,
    fast_weights,
    load_logits,
    row_float,
    row_integer,
    row_logits,
    tempered,
)

# A group's count word is (finite logits) + NAN_UNIT * (NaN logits).
NAN_UNIT = tl.constexpr(200)


@triton.jit(
    do_not_specialize=[
        "rows_per_batch",
        "num_classed",
        "num_classes",
        "num_groups",
        "num_splits",
        "shared",
        "temperature",
        "top_k",
        "top_p",
        "at_mode",
    ]
)
def exact_statistics(
    logits,
    batch_stride: tl.int64,
    row_stride: tl.int64,
    rows_per_batch,
    vocab_size,
    token_classes,
    num_classed: tl.int32,
    class_scale,
    class_bias,
    num_classes: tl.int32,
    num_groups: tl.int32,
    num_splits: tl.int32,
    mode_ids,
    bias,
    shared: tl.int32,
    temperature_rows,
    temperature: tl.int64,
    top_k_rows,
    top_k: tl.int64,
    top_p_rows,
    top_p: tl.int64,
    at_mode_rows,
    at_mode: tl.int32,
    group_peak,  # [N, num_groups] float32: the largest logit
    group_mass,  # [N, num_groups] float64: sum exp((x - peak) / T)
    group_raw_mass,  # [N, num_groups] float32: sum exp(x - peak)
    group_count,  # [N, num_groups] int16
    NUM_MODES: tl.constexpr,
    OTHER: tl.constexpr,  # index of the any-other mode, -1 = none
    ONLY_MODES: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """One program = GROUPS groups of one row. Tokens listed in `mode_ids` are left out: the draw adds them exactly."""
    row = (tl.program_id(0) // num_splits).to(tl.int64)
    split = tl.program_id(0) % num_splits
    group = split * GROUPS + tl.arange(0, GROUPS)
    columns = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = columns < vocab_size
    source = row_logits(
        row, logits, batch_stride, row_stride, rows_per_batch, vocab_size,
        token_classes, num_classed, class_scale, class_bias, num_classes,
    )  # fmt: skip
    loaded = tl.load(source.start + columns, mask=inside).to(tl.float32)
    nan = inside & (loaded != loaded)
    x = load_logits(source, columns, inside)

    t = row_float(temperature_rows, temperature, row, shared, TEMPERATURE)
    t = tl.where(t == 0.0, 1.0, t)
    k = row_integer(top_k_rows, top_k, row, shared, TOP_K)
    p = row_float(top_p_rows, top_p, row, shared, TOP_P)
    gate = row_integer(at_mode_rows, at_mode, row, shared, AT_MODE) != 0
    all_equal = False
    for i in tl.static_range(NUM_MODES):
        if i == OTHER:
            if bias is not None:
                # An infinite bias makes every other token equal, so only their number counts.
                all_equal = gate & (tl.load(bias + row * NUM_MODES + i) == INF)
        else:
            mode_id = tl.load(mode_ids + i)
            if mode_id // (GROUPS * GROUP) == split:
                x = tl.where(columns == mode_id, NEG_INF, x)

    peak = tl.max(x, 1)
    count = tl.sum((x > NEG_INF).to(tl.int32) + nan.to(tl.int32) * NAN_UNIT, 1)
    raw = tl.sum(fast_weights(x, peak[:, None], LOG2_E), 1)
    # Only a nucleus of the whole row compares masses with this sum; there float32 would miss by a token on 1-5 %.
    exact = (p < 1.0) & ((k <= 0) | (k >= vocab_size))
    if ONLY_MODES:
        exact = exact & (gate == 0)
    if exact:
        y = tempered(x.to(tl.float64), peak[:, None].to(tl.float64), t)
        mass = tl.sum(tl.exp(y), 1)
    elif t == 1.0:
        mass = raw.to(tl.float64)
    else:
        mass = tl.sum(fast_weights(x, peak[:, None], fast_scale(t)), 1).to(tl.float64)
    if all_equal:
        mass = (count % NAN_UNIT).to(tl.float64)

    slot = row * num_groups + group
    real = group < num_groups
    tl.store(group_peak + slot, peak, mask=real)
    tl.store(group_mass + slot, mass, mask=real)
    tl.store(group_raw_mass + slot, raw, mask=real)
    tl.store(group_count + slot, count.to(tl.int16), mask=real)
