"""The end of a large nucleus: its threshold and its group, from what stage C left of the row."""

import triton
import triton.language as tl

from adapt_kernels.ops.mode_sample.triton_gate import GROUP, NEG_INF, gated, load_logits, tempered
from adapt_kernels.ops.mode_sample.triton_nucleus import BLOCK_UNIT, BLOCKS, mass_level
from adapt_kernels.ops.mode_sample.triton_threshold import is_kept

# Blocks per step of the list: one per thread.
LISTED = tl.constexpr(256)
# Kept masses of a group are added up as integers, in any order: at most 128 of 1.
UNIT = tl.constexpr(2.0**55)


@triton.jit
def groups_of(slot, ends, num_groups, GROUP_SLOTS: tl.constexpr):
    """The groups of entries of a list of which group i ends before `ends[i]`."""
    group = slot * 0
    width = tl.full((), GROUP_SLOTS // 2, tl.int32)
    while width > 0:
        probe = group + width
        end = tl.load(ends + probe - 1, mask=probe <= num_groups, other=2147483647)
        group = tl.where(end <= slot, probe, group)
        width = width // 2
    return group


@triton.jit
def list_candidates(
    low, high, num_groups, group_word, blocks, group_list, values, places, source, mode_ids,
    NUM_MODES: tl.constexpr, OTHER: tl.constexpr, GROUP_SLOTS: tl.constexpr, CAPACITY: tl.constexpr,
    WORDS: tl.constexpr,
):  # fmt: skip
    """Writes the logits inside the bracket and their columns; returns their number, which may exceed CAPACITY."""
    step: tl.constexpr = LISTED
    group = tl.arange(0, GROUP_SLOTS)
    count = tl.load(group_word + group, mask=group < num_groups, other=0) // BLOCK_UNIT
    tl.store(group_list + group, tl.cumsum(count, 0), mask=group < num_groups)
    tl.debug_barrier()
    filled = 0
    number = tl.sum(count)
    for first in range(0, number, step):
        slot = first + tl.arange(0, step)
        real = slot < number
        home = groups_of(slot, group_list, num_groups, GROUP_SLOTS)
        before = tl.load(group_list + home - 1, mask=real & (home > 0), other=0)
        block = tl.load(blocks + home * BLOCKS + slot - before, mask=real, other=0).to(tl.int32)[:, None]
        each = tl.arange(0, 8)[None, :]
        column = 32 * (each // 2) + 2 * block + each % 2 if WORDS else BLOCKS * each + block
        column += home[:, None] * GROUP
        x = load_logits(source, column, real[:, None] & (column < source.vocab_size))
        take = (x >= low) & (x <= high) & (x > NEG_INF)
        for i in tl.static_range(NUM_MODES):
            if i != OTHER:
                take = take & (column != tl.load(mode_ids + i))
        take = tl.reshape(take, [step * 8])
        position = filled + tl.cumsum(take.to(tl.int32), 0) - 1
        fits = take & (position < CAPACITY)
        tl.store(values + position, tl.reshape(x, [step * 8]).to(tl.float64), mask=fits)
        tl.store(places + position, tl.reshape(column, [step * 8]), mask=fits)
        filled += tl.sum(take.to(tl.int32))
    return filled


@triton.jit
def weigh_candidates(
    filled, lowest, highest, values, weights, places, mode_ids, listed_y, shift, peak, temperature,
    NUM_MODES: tl.constexpr, OTHER: tl.constexpr, CAPACITY: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Turns the logits into tempered values and their masses, and adds the listed tokens between the two values."""
    tl.debug_barrier()
    held = tl.minimum(filled, CAPACITY)
    for first in range(0, held, STEP):
        slot = first + tl.arange(0, STEP)
        x = tl.load(values + slot, mask=slot < held, other=NEG_INF)
        y = tempered(gated(x, shift), peak, temperature)
        tl.store(values + slot, y, mask=slot < held)
        tl.store(weights + slot, tl.exp(y), mask=slot < held)
    for i in tl.static_range(NUM_MODES):
        if i != OTHER:
            own = tl.load(listed_y + i)
            between = (own >= lowest) & (own <= highest)
            tl.store(values + filled, own, mask=between & (filled < CAPACITY))
            tl.store(weights + filled, tl.exp(own), mask=between & (filled < CAPACITY))
            tl.store(places + filled, -1, mask=between & (filled < CAPACITY))
            filled += between.to(tl.int32)
    tl.debug_barrier()
    return filled


@triton.jit
def masses_above(
    low, high, group_peak, group_above, group_word, num_groups, shift, peak, temperature, GROUP_SLOTS: tl.constexpr
):  # fmt: skip
    """Kept masses of all groups above the bracket, and the number of tokens there."""
    group = tl.arange(0, GROUP_SLOTS)
    real = group < num_groups
    level = mass_level(tl.load(group_peak + group, mask=real, other=NEG_INF), low, high).to(tl.float64)
    mass = tl.load(group_above + group, mask=real, other=0.0).to(tl.float64)
    mass *= tl.exp(tempered(gated(level, shift), peak, temperature))
    return mass, tl.sum(tl.load(group_word + group, mask=real, other=0) % BLOCK_UNIT)


@triton.jit
def kept_masses(
    threshold, min_p, low, high, filled, values, weights, places, extra, group_peak, group_above, group_word, masses,
    num_groups, mode_ids, listed_y, shift, peak, temperature,
    NUM_MODES: tl.constexpr, OTHER: tl.constexpr, GROUP_SLOTS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Writes the kept mass of every group; returns the kept mass and count of the row."""
    group = tl.arange(0, GROUP_SLOTS)
    real = group < num_groups
    tl.store(extra + group, tl.zeros([GROUP_SLOTS], tl.int64), mask=real)
    tl.debug_barrier()
    count = tl.zeros((), tl.int32)
    for first in range(0, filled, STEP):
        slot = first + tl.arange(0, STEP)
        y = tl.load(values + slot, mask=slot < filled, other=NEG_INF)
        place = tl.load(places + slot, mask=slot < filled, other=-1)
        keep = is_kept(y, threshold, min_p) & (place >= 0)
        parts = (tl.load(weights + slot, mask=slot < filled, other=0.0) * UNIT).to(tl.int64)
        tl.atomic_add(extra + place // GROUP, parts, mask=keep, sem="relaxed")
        count += tl.sum(keep.to(tl.int32))
    tl.debug_barrier()
    # Past the first cache, which does not see what was added.
    added = tl.load(extra + group, mask=real, other=0, cache_modifier=".cg")
    above, above_count = masses_above(
        low, high, group_peak, group_above, group_word, num_groups, shift, peak, temperature, GROUP_SLOTS
    )  # fmt: skip
    count += above_count
    mass = above + added.to(tl.float64) * (1.0 / UNIT)
    for i in tl.static_range(NUM_MODES):
        if i != OTHER:
            y = tl.load(listed_y + i)
            home = tl.where(is_kept(y, threshold, min_p), tl.load(mode_ids + i) // GROUP, -1)
            mass += tl.where(group == home, tl.exp(y), 0.0)
            count += tl.where(home >= 0, 1, 0)
    tl.store(masses + group, mass, mask=real)
    return tl.sum(mass), count


@triton.jit
def open_bracket(
    low, high, min_p, group_peak, group_above, group_word, blocks, places, num_groups, values, weights, group_list,
    source, mode_ids, listed_y, shift, peak, temperature,
    NUM_MODES: tl.constexpr, OTHER: tl.constexpr, GROUP_SLOTS: tl.constexpr, CAPACITY: tl.constexpr,
    GROUPS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """(whether the candidates of a row with a bracket could be listed, their number, the mass above them, the value
    that it lies above)."""
    filled = list_candidates(
        low, high, num_groups, group_word, blocks, group_list, values, places, source, mode_ids,
        NUM_MODES, OTHER, GROUP_SLOTS, CAPACITY, WORDS,
    )  # fmt: skip
    highest = tempered(gated(high.to(tl.float64), shift), peak, temperature)
    lowest = tempered(gated(low.to(tl.float64), shift), peak, temperature)
    filled = weigh_candidates(
        filled, lowest, highest, values, weights, places, mode_ids, listed_y, shift, peak, temperature,
        NUM_MODES, OTHER, CAPACITY, GROUPS * GROUP,
    )  # fmt: skip
    above, _ = masses_above(
        low, high, group_peak, group_above, group_word, num_groups, shift, peak, temperature, GROUP_SLOTS
    )  # fmt: skip
    outside = tl.sum(above)
    for i in tl.static_range(NUM_MODES):
        if i != OTHER:
            own = tl.load(listed_y + i)
            outside += tl.where(own > highest, tl.exp(own), 0.0)
    # Where min-p cuts above the bracket, the masses above it are not what is kept.
    usable = (filled > 0) & (filled <= CAPACITY) & (tl.exp(highest) >= min_p)
    return usable, filled, outside, highest
