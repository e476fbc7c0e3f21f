"""The end of a large nucleus: its threshold and its group, from what stage C left of the row."""

import triton
import triton.language as tl

from adapt_kernels.ops.mode_sample.triton_gate import (
    GROUP,
    NEG_INF,
    RowLogits,
    gated,
    load_logits,
    read_logits,
    tempered,
)
from adapt_kernels.ops.mode_sample.triton_nucleus import BLOCK_UNIT, BLOCKS, mass_level
from adapt_kernels.ops.mode_sample.triton_threshold import is_kept

# Blocks per step of the list.
LISTED = tl.constexpr(1024)
# Kept masses of a group are added up as integers, in any order: at most 128 of 1.
UNIT = tl.constexpr(2.0**55)


@triton.jit
def list_blocks(num_groups, group_word, blocks, block_list, GROUP_SLOTS: tl.constexpr, CAPACITY: tl.constexpr):
    """Writes the row's blocks with logits inside the bracket in order, unless too many; returns their number."""
    group = tl.arange(0, GROUP_SLOTS)
    count = tl.load(group_word + group, mask=group < num_groups, other=0) // BLOCK_UNIT
    number = tl.sum(count)
    if number <= CAPACITY:
        four = blocks.to(tl.pointer_type(tl.int32), bitcast=True) + group * (BLOCKS // 4)
        listed = block_list + tl.cumsum(count, 0) - count
        for first in range(0, tl.max(count), 4):
            word = tl.load(four + first // 4, mask=first < count, other=0)
            for i in tl.static_range(4):
                block = group * BLOCKS + ((word >> (8 * i)) & 255)
                tl.store(listed + first + i, block, mask=first + i < count)
    tl.debug_barrier()
    return number


@triton.jit
def list_candidates(
    low, high, num_groups, group_word, blocks, block_list, places, source, mode_ids,
    NUM_MODES: tl.constexpr, OTHER: tl.constexpr, GROUP_SLOTS: tl.constexpr, CAPACITY: tl.constexpr,
    WORDS: tl.constexpr,
):  # fmt: skip
    """Writes the columns of the logits inside the bracket; returns their number, or more than CAPACITY."""
    number = list_blocks(num_groups, group_word, blocks, block_list, GROUP_SLOTS, CAPACITY)
    filled = tl.where(number > CAPACITY, CAPACITY + 1, 0)
    for first in range(0, tl.where(number > CAPACITY, 0, number), LISTED):
        # Not as neighbours: what is loaded by them lies as they do.
        slot = tl.max_contiguous(first + tl.arange(0, LISTED), 1)
        block = tl.load(block_list + slot, mask=slot < number, other=0)
        start = (block >> 4) * GROUP + (block & 15) * (2 if WORDS else 1)
        left = tl.where(slot < number, source.vocab_size - start, 0)
        rest = RowLogits(
            source.start + start, left, start, source.classes, source.num_classed, source.scale, source.bias
        )
        # Its bits: which of the eight are inside; above them, how many.
        taken = tl.zeros([LISTED], tl.int32)
        for each in tl.static_range(8):
            column = 32 * (each // 2) + each % 2 if WORDS else BLOCKS * each
            x = read_logits(rest, column, column < rest.vocab_size)
            inside = (column < rest.vocab_size) & (x >= low) & (x <= high)
            for i in tl.static_range(NUM_MODES):
                if i != OTHER:
                    inside = inside & (start + column != tl.load(mode_ids + i))
            taken += tl.where(inside, 256 + (1 << each), 0)
        many = taken >> 8
        end = filled + tl.cumsum(many, 0)
        position = end - many
        taken = tl.where(end <= CAPACITY, taken & 255, 0)
        while tl.max(taken) > 0:
            # The first that is left: of a power of two, float32 holds the exponent.
            least = ((taken & -taken).to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
            ahead = 32 * (least >> 1) + (least & 1) if WORDS else BLOCKS * least
            tl.store(places + position, start + ahead, mask=taken != 0)
            position += 1
            taken = taken & (taken - 1)
        filled = tl.max(end)
    return filled


@triton.jit
def weigh_candidates(
    filled, lowest, highest, values, weights, places, source, mode_ids, listed_y, shift, peak, temperature,
    NUM_MODES: tl.constexpr, OTHER: tl.constexpr, CAPACITY: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Writes tempered values of the listed columns and their masses, and adds the tokens between the two values that
    are modes of their own."""
    tl.debug_barrier()
    # Of a list that is too long some columns were never written.
    held = tl.where(filled > CAPACITY, 0, filled)
    for first in range(0, held, STEP):
        slot = first + tl.arange(0, STEP)
        place = tl.load(places + slot, mask=slot < held, other=0)
        x = load_logits(source, place, slot < held)
        y = tempered(gated(x.to(tl.float64), shift), peak, temperature)
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
    low, high, min_p, group_peak, group_above, group_word, blocks, places, num_groups, values, weights,
    source, mode_ids, listed_y, shift, peak, temperature,
    NUM_MODES: tl.constexpr, OTHER: tl.constexpr, GROUP_SLOTS: tl.constexpr, CAPACITY: tl.constexpr,
    GROUPS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """(whether the candidates of a row with a bracket could be listed, their number, the mass above them, the value
    that it lies above)."""
    # There are no weights yet.
    block_list = weights.to(tl.pointer_type(tl.int32), bitcast=True)
    filled = list_candidates(
        low, high, num_groups, group_word, blocks, block_list, places, source, mode_ids,
        NUM_MODES, OTHER, GROUP_SLOTS, CAPACITY, WORDS,
    )  # fmt: skip
    highest = tempered(gated(high.to(tl.float64), shift), peak, temperature)
    lowest = tempered(gated(low.to(tl.float64), shift), peak, temperature)
    filled = weigh_candidates(
        filled, lowest, highest, values, weights, places, source, mode_ids, listed_y, shift, peak, temperature,
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
