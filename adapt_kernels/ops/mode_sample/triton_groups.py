"""Drawing a group of a row: by masses that are at hand, or by what the filters keep of groups that are read again."""

import triton
import triton.language as tl

from adapt_kernels.ops.mode_sample.triton_gate import (
    GROUP,
    INF,
    NEG_INF,
    fast_scale,
    fast_weights,
    gated,
    load_logits,
    tempered,
)
from adapt_kernels.ops.mode_sample.triton_threshold import is_kept, list_groups, lowest_kept_logit
from adapt_kernels.ops.triton_random import PURPOSE_GROUP, gumbel


@triton.jit
def draw_kept_group(
    threshold, min_p, seed, step, group_peak, num_groups, group_list, source, mode_ids, listed_y,
    shift, peak, temperature,
    NUM_MODES: tl.constexpr, OTHER: tl.constexpr, GROUP_SLOTS: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Draws a group by its kept mass; returns it with the kept mass and count of the row."""
    cut = lowest_kept_logit(threshold, min_p, shift, peak, temperature)
    # Nothing is >= NaN: a bias of -inf drops +inf too.
    cut = tl.where(shift == NEG_INF, float("nan"), cut)
    group = tl.arange(0, GROUP_SLOTS)
    peaks = tl.load(group_peak + group, mask=group < num_groups, other=NEG_INF)
    chosen = (peaks >= cut) & (peaks > NEG_INF)
    for i in tl.static_range(NUM_MODES):
        if i != OTHER:
            home = tl.where(is_kept(tl.load(listed_y + i), threshold, min_p), tl.load(mode_ids + i) // GROUP, -1)
            chosen = chosen | (group == home)
    num_listed = list_groups(chosen, group, group_list)
    scale = fast_scale(temperature)
    kept_mass = tl.zeros((), tl.float64)
    kept_count = tl.zeros((), tl.int32)
    best_score = tl.full((), float("-inf"), tl.float64)
    best_group = tl.zeros((), tl.int32)
    for first in range(0, num_listed, GROUPS):
        slot = first + tl.arange(0, GROUPS)
        g = tl.load(group_list + slot, mask=slot < num_listed, other=0)
        columns = g[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        mask = (slot < num_listed)[:, None] & (columns < source.vocab_size)
        x = load_logits(source, columns, mask)
        keep = (x >= cut) & (x > NEG_INF)
        for i in tl.static_range(NUM_MODES):
            if i != OTHER:
                keep = keep & (columns != tl.load(mode_ids + i))
        top = tl.load(group_peak + g)
        weight = tl.where(shift == INF, 1.0, fast_weights(x, top[:, None], scale))
        y_top = tempered(gated(top.to(tl.float64), shift), peak, temperature)
        mass = tl.sum(tl.where(keep, weight, 0.0), 1).to(tl.float64) * tl.exp(y_top)
        count = tl.sum(keep.to(tl.int32), 1)
        for i in tl.static_range(NUM_MODES):
            if i != OTHER:
                y = tl.load(listed_y + i)
                home = tl.where(is_kept(y, threshold, min_p), tl.load(mode_ids + i) // GROUP, -1)
                here = (g == home) & (slot < num_listed)
                mass += tl.where(here, tl.exp(y), 0.0)
                count += here.to(tl.int32)
        score = tl.where(slot < num_listed, tl.log(mass) + gumbel(seed, step, PURPOSE_GROUP, g), NEG_INF)
        chunk_score = tl.max(score)
        # The list ascends: a later chunk wins only if strictly better, as in argmax.
        if chunk_score > best_score:
            best_score = chunk_score
            best_group = tl.min(tl.where(score == chunk_score, g, 2147483647))
        kept_mass += tl.sum(mass)
        kept_count += tl.sum(count)
    return best_group, kept_mass, kept_count


@triton.jit
def draw_group(masses, num_groups, greedy, seed, step, CHUNK: tl.constexpr):
    """Draws a group by its mass; greedy: without noise."""
    tl.debug_barrier()
    best_score = tl.full((), float("-inf"), tl.float64)
    best = tl.zeros((), tl.int32)
    for first in range(0, num_groups, CHUNK):
        group = first + tl.arange(0, CHUNK)
        mass = tl.load(masses + group, mask=group < num_groups, other=0.0)
        score = tl.log(mass) + tl.where(greedy, 0.0, gumbel(seed, step, PURPOSE_GROUP, group))
        top = tl.max(score)
        # A later chunk wins only if strictly better, as in argmax.
        if top > best_score:
            best_score = top
            best = tl.min(tl.where(score == top, group, 2147483647))
    return best
