"""The finishing kernel: one program per row turns group statistics into a token and everything reported about it."""

import triton
import triton.language as tl

from adapt_kernels.ops.mode_sample.triton_gate import (
    AT_MODE,
    FAST_PROB,
    FORCED,
    GROUP,
    INF,
    MIN_P,
    NAN_UNIT,
    NEG_INF,
    SEED,
    STEP,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    RowLogits,
    gated,
    load_logits,
    model_mode_probs,
    open_row,
    row_edits,
    row_float,
    row_integer,
    row_start,
    tempered,
    with_exact_probability,
    with_listed,
    with_listed_mass,
)
from adapt_kernels.ops.mode_sample.triton_groups import draw_group, draw_kept_group
from adapt_kernels.ops.mode_sample.triton_nucleus import BLOCKS, STATE
from adapt_kernels.ops.mode_sample.triton_nucleus_draw import kept_masses, open_bracket
from adapt_kernels.ops.mode_sample.triton_read import MASS_ERROR
from adapt_kernels.ops.mode_sample.triton_threshold import filter_threshold, is_kept
from adapt_kernels.ops.triton_random import PURPOSE_TOKEN, gumbel, row_seed

FLAG_NAN = tl.constexpr(1)
FLAG_EMPTY = tl.constexpr(2)
FLAG_INF = tl.constexpr(4)
# Below this temperature differences of logits may overflow to -inf when tempered, which drops tokens.
TINY_TEMPERATURE = tl.constexpr(1e-37)


@triton.jit
def draw_token(
    group, given, threshold, min_p, greedy, seed, step, source, mode_ids, listed_y, shift, peak, temperature,
    offset, listed_only, NUM_MODES: tl.constexpr, OTHER: tl.constexpr,
):  # fmt: skip
    """Draws a token in a group, or takes `given` >= 0; returns it, its tempered value, its logit and if it is kept."""
    lane = tl.arange(0, GROUP)
    columns = group * GROUP + lane
    z = load_logits(source, columns, columns < source.vocab_size).to(tl.float64)
    y = tempered(gated(z, shift), peak, temperature) + offset
    y = tl.where(listed_only, NEG_INF, y)
    y = with_listed(y, columns, mode_ids, listed_y, NUM_MODES, OTHER)
    keep = is_kept(y, threshold, min_p)
    noise = tl.where(greedy, 0.0, gumbel(seed, step, PURPOSE_TOKEN, columns))
    score = tl.where(keep, y + noise, NEG_INF)
    best = tl.min(tl.where(score == tl.max(score), lane, GROUP))
    chosen = tl.where(given >= 0, given % GROUP, best)
    here = lane == chosen
    kept = tl.max((here & keep).to(tl.int32)) != 0
    kept = kept & ((greedy == 0) | (chosen == best))
    y_token = tl.max(tl.where(here, y, NEG_INF))
    return group * GROUP + chosen, y_token, tl.max(tl.where(here, z, NEG_INF)), kept


@triton.jit(
    do_not_specialize=[
        "rows_per_batch", "num_classed", "num_classes", "num_groups", "fallback", "shared", "temperature", "top_k",
        "top_p", "min_p", "at_mode",
        "seed", "step", "fast_prob", "forced",
    ]
)  # fmt: skip
def draw(
    logits, batch_stride: tl.int64, row_stride: tl.int64, rows_per_batch,
    vocab_size, token_classes, num_classed: tl.int32, class_scale, class_bias, num_classes: tl.int32,
    num_groups: tl.int32, mode_ids, bias, fallback: tl.int32,
    shared: tl.int32, temperature_rows, temperature: tl.int64, top_k_rows, top_k: tl.int64,
    top_p_rows, top_p: tl.int64, min_p_rows, min_p: tl.int64, at_mode_rows, at_mode: tl.int32,
    seed_rows, seed: tl.int64, step_rows, step: tl.int64, fast_prob_rows, fast_prob: tl.int64,
    forced_rows, forced: tl.int64,
    group_peak, group_mass, group_raw_mass, group_count, values, weights, group_list, tops, listed_y,
    state, group_above, group_word, blocks, extra, places,
    tokens, modes, logprobs, raw_logprobs, tempered_logprobs, mode_probs, kept, flags,
    NUM_MODES: tl.constexpr, MODE_SLOTS: tl.constexpr, OTHER: tl.constexpr, ONLY_MODES: tl.constexpr,
    FILTERS: tl.constexpr, GROUP_SLOTS: tl.constexpr, CAPACITY: tl.constexpr, GROUPS: tl.constexpr,
    WORDS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Thresholds, group draw, token draw and log-probs of one row."""
    row = tl.program_id(0).to(tl.int64)
    source = RowLogits(
        row_start(row, logits, batch_stride, row_stride, rows_per_batch), vocab_size, 0,
        token_classes, num_classed,
        row_edits(class_scale, row, num_classes), row_edits(class_bias, row, num_classes),
    )  # fmt: skip
    listed_y += row * MODE_SLOTS
    t = row_float(temperature_rows, temperature, row, shared, TEMPERATURE)
    gate = row_integer(at_mode_rows, at_mode, row, shared, AT_MODE) != 0
    exact_p = row_float(fast_prob_rows, fast_prob, row, shared, FAST_PROB)
    exact = gate & (exact_p == exact_p)
    greedy = (t == 0.0) & (exact == 0)
    t = tl.where(t == 0.0, 1.0, t)
    stream = row_integer(seed_rows, seed, row, shared, SEED)
    if seed_rows is None:
        stream = row_seed(stream, row)
    position = row_integer(step_rows, step, row, shared, STEP)

    # The gate, on group maxima and listed tokens.
    group = tl.arange(0, GROUP_SLOTS)
    real = group < num_groups
    index = tl.arange(0, MODE_SLOTS)
    _, group_others, y_group, z_listed, y_listed, shift, peak = open_row(
        source, row, group_peak, group_mass, num_groups, mode_ids, bias, gate, t,
        NUM_MODES, MODE_SLOTS, OTHER, ONLY_MODES, GROUP_SLOTS,
    )  # fmt: skip
    # Places of the row in the workspace are worked out where they are used: there are too many to hold.
    first_group = row * num_groups
    restricted = gate & ONLY_MODES
    empty = peak == NEG_INF
    offset = tl.zeros((), tl.float64)
    if NUM_MODES > 0:
        if exact:
            y_listed, offset = with_exact_probability(exact_p, y_listed, index, y_group, group_others, OTHER)
        tl.store(listed_y + index, y_listed)
        tl.debug_barrier()
    y_group += offset
    mass, group_top = with_listed_mass(
        group_others * tl.exp(y_group), y_group, group, y_listed, index, mode_ids, NUM_MODES, OTHER
    )
    total = tl.sum(mass)

    # Unfiltered: every group takes part with the mass of stage A. Greedy is the same draw without noise.
    kept_mass = total
    kept_count = tl.zeros((), tl.int32)
    threshold = tl.where(greedy, 0.0, NEG_INF).to(tl.float64)
    least = tl.zeros((), tl.float64)
    drawn_group = tl.zeros((), tl.int32)
    filtered = tl.full((), 0, tl.int1)
    # Whether `tops` holds the masses to draw a group by.
    by_mass = 1
    if FILTERS:
        k = row_integer(top_k_rows, top_k, row, shared, TOP_K)
        k = tl.where(k < vocab_size, k, 0)
        p = row_float(top_p_rows, top_p, row, shared, TOP_P)
        least = row_float(min_p_rows, min_p, row, shared, MIN_P)
        least = tl.where(greedy | restricted, 0.0, least)
        filtered = (k > 0) | (p < 1.0) | (least > 0.0) | (t < TINY_TEMPERATURE)
        filtered = filtered & (greedy == 0) & (restricted == 0) & (empty == 0)
    if filtered == 0:
        counts = tl.load(group_count + first_group + group, mask=real, other=0).to(tl.int32)
        # Where the peak is +inf only the +inf count, and they are what the masses of these groups counted.
        tokens_in = tl.where(peak == INF, group_others.to(tl.int32), counts % NAN_UNIT)
        kept_count = tl.sum(tl.where(y_group > NEG_INF, tokens_in, 0)) + tl.sum((y_listed > NEG_INF).to(tl.int32))
        tl.store(tops + first_group + group, tl.where(greedy, tl.where(group_top == 0.0, 1.0, 0.0), mass), mask=real)
    elif FILTERS:
        by_mass = 0
        tl.store(tops + first_group + group, group_top, mask=real)
        bracketed = tl.full((), 0, tl.int1)
        low = tl.full((), float("inf"), tl.float32)
        high, filled, outside, highest = low, 0, least * 0.0, low.to(tl.float64)
        if state is not None:
            low, high = tl.load(state + row * STATE), tl.load(state + row * STATE + 1)
            if low < INF:
                bracketed, filled, outside, highest = open_bracket(
                    low, high, least, group_peak + first_group, group_above + first_group, group_word + first_group,
                    blocks + first_group * BLOCKS, places + row * CAPACITY, num_groups, values + row * CAPACITY,
                    weights + row * CAPACITY, source, mode_ids, listed_y, shift, peak, t,
                    NUM_MODES, OTHER, GROUP_SLOTS, CAPACITY, GROUPS, WORDS,
                )  # fmt: skip
        if (k > 0) | (p < 1.0):
            error = tl.where((t < 1e-30) | (t > 1e30), 1.0, MASS_ERROR).to(tl.float64)
            threshold, bracketed = filter_threshold(
                k, p, total, error, bracketed, tl.where(bracketed, outside, 0.0), filled, highest, tops + first_group,
                num_groups, values + row * CAPACITY, weights + row * CAPACITY, group_list + first_group, source,
                mode_ids, listed_y, shift, peak, t,
                NUM_MODES, OTHER, GROUP_SLOTS, CAPACITY, GROUPS,
            )  # fmt: skip
        by_mass = bracketed.to(tl.int32)
        if state is not None:  # noqa: SIM102 (decided when compiling; the next line is not)
            if bracketed:
                kept_mass, kept_count = kept_masses(
                    threshold, least, low, high, filled, values + row * CAPACITY, weights + row * CAPACITY,
                    places + row * CAPACITY, extra + first_group, group_peak + first_group, group_above + first_group,
                    group_word + first_group, tops + first_group, num_groups, mode_ids, listed_y, shift, peak, t,
                    NUM_MODES, OTHER, GROUP_SLOTS, GROUPS * GROUP,
                )  # fmt: skip
        if by_mass == 0:
            drawn_group, kept_mass, kept_count = draw_kept_group(
                threshold, least, stream, position, group_peak + first_group, num_groups, group_list + first_group,
                source, mode_ids, listed_y,
                shift, peak, t, NUM_MODES, OTHER, GROUP_SLOTS, GROUPS,
            )  # fmt: skip
    if by_mass != 0:
        drawn_group = draw_group(tops + first_group, num_groups, greedy, stream, position, CHUNK)

    forced_token = row_integer(forced_rows, forced, row, shared, FORCED)
    given = tl.where(empty, tl.where(restricted, fallback, 0), -1)
    given = tl.where(forced_token >= 0, forced_token, given).to(tl.int32)
    token_group = tl.where(given >= 0, given // GROUP, drawn_group)
    token, y_token, z_token, token_kept = draw_token(
        token_group, given, threshold, least, greedy, stream, position, source, mode_ids, listed_y, shift,
        peak, t, offset, ONLY_MODES & (OTHER < 0) & gate, NUM_MODES, OTHER,
    )  # fmt: skip
    # Greedy keeps one token, so a token forced from another group than the drawn one is none of the kept.
    token_kept = token_kept & (empty == 0) & ((greedy == 0) | (token_group == drawn_group))
    kept_mass = tl.where(greedy, 1.0, kept_mass)
    kept_count = tl.where(greedy & (empty == 0), 1, kept_count)
    processed = tl.where(token_kept, y_token - tl.log(kept_mass), NEG_INF)
    processed = tl.where(empty & (forced_token < 0), 0.0, processed)

    raw_mass = tl.load(group_raw_mass + first_group + group, mask=real, other=0.0).to(tl.float64)
    raw_peaks = tl.load(group_peak + first_group + group, mask=real, other=NEG_INF).to(tl.float64)
    counts = tl.load(group_count + first_group + group, mask=real, other=0).to(tl.int32)
    raw_peak = tl.maximum(tl.max(raw_peaks), tl.max(z_listed))
    raw_total = tl.sum(raw_mass * tl.exp(tempered(raw_peaks, raw_peak, 1.0)))
    raw_total += tl.sum(tl.exp(tempered(z_listed, raw_peak, 1.0)))
    raw_y = tempered(z_token, raw_peak, 1.0)
    tl.store(tokens + row, token.to(tl.int64))
    tl.store(logprobs + row, processed.to(tl.float32))
    tl.store(raw_logprobs + row, tl.where(raw_y > NEG_INF, raw_y - tl.log(raw_total), NEG_INF).to(tl.float32))
    tl.store(tempered_logprobs + row, tl.where(y_token > NEG_INF, y_token - tl.log(total), NEG_INF).to(tl.float32))
    tl.store(kept + row, kept_count)
    nan = tl.where(tl.max(counts) >= NAN_UNIT, FLAG_NAN, 0)
    tl.store(flags + row, nan + tl.where(empty, FLAG_EMPTY, 0) + tl.where(raw_peak == INF, FLAG_INF, 0))
    selected = tl.full((), -1, tl.int32)
    if NUM_MODES > 0:
        mode_id = tl.load(mode_ids + index, mask=index < NUM_MODES, other=-1)
        selected = tl.max(tl.where(mode_id == token, index, -1))
        if OTHER >= 0:
            selected = tl.where(selected < 0, OTHER, selected)
        selected = tl.where(gate, selected, -1)
        probs = model_mode_probs(z_listed, index, raw_peaks, raw_mass, OTHER)
        tl.store(mode_probs + row * NUM_MODES + index, probs.to(tl.float32), mask=index < NUM_MODES)
    tl.store(modes + row, selected.to(tl.int8))
